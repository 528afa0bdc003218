"""What a folder of a file system does that a bucket does not; the rest is in test_storage."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import AlreadyExistsError
from orchestrator.ledger.path_store import TEMPORARY, PathStore, explained, publish
from orchestrator.ledger.storage import Storage
from tests.unit.orchestrator.ledger.conftest import mounted


def test_a_folder_that_is_left_empty_goes_with_its_last_object(tmp_path: Path) -> None:
    store = PathStore(tmp_path)
    store.create("a/b/c", b"1")
    store.delete("a/b/c")
    assert list(tmp_path.iterdir()) == []
    store.delete("a/b/c")


def test_a_failed_creation_leaves_no_temporary_file(tmp_path: Path) -> None:
    store = PathStore(tmp_path)
    store.create("a", b"1")
    with pytest.raises(AlreadyExistsError):
        store.upload(tmp_path / "a", "a", lambda: None)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", [f"{TEMPORARY}01", ".nfs00000000022c0a1b00000012"])
def test_what_a_killed_writer_or_nfs_left_is_not_listed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"half")
    store = PathStore(tmp_path)
    assert (store.list(""), store.children("")) == ({}, set())


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path, "ro") as folder:
        yield folder


def test_a_full_disk_is_said_with_its_remedy_and_nothing_stays(small: Path) -> None:
    with pytest.raises(OSError, match="free some space") as raised:
        PathStore(small).create("a/b", bytes(1 << 20))
    assert raised.value.errno == errno.ENOSPC
    assert not [p for p in small.rglob("*") if p.is_file()]
    PathStore(small).create("c", b"fits")


def test_a_disk_that_is_full_of_an_upload_is_left_as_it_was(small: Path, tmp_path: Path) -> None:
    large = Path(tempfile.mkdtemp(dir="/tmp")) / "large"
    large.write_bytes(bytes(1 << 20))
    with pytest.raises(OSError, match="No space left on device; free some space"):
        PathStore(small).upload(large, "a", lambda: None)
    assert not [p for p in small.rglob("*") if p.is_file()]
    shutil.rmtree(large.parent)


@pytest.mark.parametrize("verb", ["create", "replace"])
def test_a_read_only_disk_is_said_with_its_remedy(read_only: Path, verb: str) -> None:
    with pytest.raises(OSError, match="Read-only file system; mount it for writing"):
        getattr(PathStore(read_only), verb)("a", b"1")


def test_what_was_said_with_its_remedy_is_not_said_again(tmp_path: Path) -> None:
    """A file system without hard links refuses them by EPERM, as others do to strangers."""
    words = "this file system has no hard links"
    for said, expected in ((words, words), (os.strerror(errno.EPERM), "see who may write there")):
        with pytest.raises(PermissionError, match=expected), explained(tmp_path):
            raise OSError(errno.EPERM, said, str(tmp_path))


def test_a_name_that_is_too_long_is_said_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File name too long; name a shorter path"):
        PathStore(tmp_path / ("x" * 300)).create("a", b"1")


def test_a_limit_on_sizes_of_files_is_said_with_the_file_and_its_remedy(tmp_path: Path) -> None:
    create = (
        "import sys, pathlib, orchestrator.ledger.path_store as s\n"
        "try: s.PathStore(pathlib.Path(sys.argv[1])).create('a', bytes(9999))\n"
        "except OSError as error: print(error.filename, error.strerror)"
    )
    shell = ["bash", "-c", 'ulimit -f 0; exec "$@"', "bash", sys.executable, "-c", create]
    done = subprocess.run([*shell, str(tmp_path)], capture_output=True, text=True, check=True)
    remedy = "raise the limit on sizes of files (ulimit -f)"
    assert done.stdout == f"{tmp_path}/a File too large; {remedy}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at", ["store", "store/artifacts/train"])
def test_a_link_that_leads_nowhere_ends_in_an_error(tmp_path: Path, at: str) -> None:
    link = tmp_path / at
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(OSError, match=r"File exists|No such file"):
        PathStore(tmp_path / "store").create("artifacts/train/a", b"1")


def test_a_file_where_a_folder_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        PathStore(tmp_path).create("a/b", b"1")


def test_what_a_killed_writer_left_is_swept_but_where_others_write(tmp_path: Path) -> None:
    store = PathStore(tmp_path)
    for path in (
        "shards/000/a",
        f"shards/000/{TEMPORARY}1",
        f"{TEMPORARY}2",
        f"lease/{TEMPORARY}3",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"half")
    assert store.sweep("lease") == 2
    left = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()]
    assert sorted(left) == [f"lease/{TEMPORARY}3", "shards/000/a"]
    assert PathStore(tmp_path / "none").sweep("lease") == 0


def test_a_folder_that_cannot_be_listed_is_not_empty(tmp_path: Path) -> None:
    """Links in a circle, since nothing is out of reach for root."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match="symbolic links"):
        PathStore(tmp_path).list("loop")


@pytest.mark.parametrize("below", ["", "a", "a/b"])
def test_of_others_only_what_is_old_is_swept(tmp_path: Path, below: str) -> None:
    """Whoever writes at this moment keeps what is half written."""
    for name, age_s in (("old", 90.0), ("new", 0.0)):
        path = tmp_path / below / f"{TEMPORARY}{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age_s,) * 2)
    assert Storage(str(tmp_path)).sweep_old() == 1
    assert [p.name for p in (tmp_path / below).iterdir()] == [f"{TEMPORARY}new"]


def test_a_link_whose_answer_was_lost_is_ours(tmp_path: Path) -> None:
    """NFS sends it again then, and is told that it exists."""
    ours = tmp_path / f"{TEMPORARY}01"
    ours.write_bytes(b"1")
    os.link(ours, tmp_path / "a")
    publish(ours, tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
