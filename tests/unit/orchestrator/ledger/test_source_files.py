"""A source's files: all of them, or an error that names what cannot be read."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from orchestrator.ledger.source_files import SourceFile, as_path, as_text, files_below


def deep_folder(root: Path) -> None:
    """A folder below ``root`` whose path is longer than the system lists, whoever asks."""
    descriptor = os.open(root, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=descriptor)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"12")


def found(root: Path) -> list[SourceFile]:
    return sorted(files_below(root))


def test_every_file_with_its_size(tmp_path: Path) -> None:
    write(tmp_path, "a/1.wav", "a/b/2.wav", ".kept/3.wav", "a/.hidden", "a/.trash/4.wav")
    write(tmp_path, "lost+found/5.wav")
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    assert found(tmp_path) == [("a/1.wav", 2, ""), ("a/b/2.wav", 2, ""), ("link/2.wav", 2, "")]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    deep_folder(tmp_path)
    with pytest.raises(OSError, match="File name too long") as error:
        list(files_below(tmp_path))
    assert str(error.value.filename).startswith(f"{tmp_path}/ddd")


def test_a_root_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        list(files_below(tmp_path / "gone"))


@pytest.mark.parametrize("left", ["", "en/", "lost+found/", ".snapshot/a.wav", "en/.hidden"])
def test_where_nothing_is_mounted_there_is_no_source(tmp_path: Path, left: str) -> None:
    if left.endswith("/"):
        (tmp_path / left).mkdir()
    elif left:
        write(tmp_path, left)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: holds nothing; see that it is mount"):
        list(files_below(tmp_path))


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("gone", "a dead link"),
        ("file/below", "a dead link"),
        ("link.wav", "a link to itself"),
        ("there", "a link to itself"),
    ],
)
def test_a_link_that_leads_nowhere_says_so(tmp_path: Path, target: str, problem: str) -> None:
    write(tmp_path, "file")
    (tmp_path / "there").symlink_to("back")
    (tmp_path / "back").symlink_to("there")
    (tmp_path / "link.wav").symlink_to(target)
    assert {f.path: f.problem for f in files_below(tmp_path)} == {
        "file": "",
        "there": "a link to itself",
        "back": "a link to itself",
        "link.wav": problem,
    }


@pytest.mark.parametrize("name", ["en", "2009", "v1.0", "English (US)", "train-clean.100"])
def test_a_dead_link_that_may_stand_for_a_folder_is_no_smaller_source(
    tmp_path: Path, name: str
) -> None:
    write(tmp_path, "a/1.wav")
    (tmp_path / "a" / name).symlink_to("/mnt/gone")
    with pytest.raises(FileNotFoundError) as error:
        list(files_below(tmp_path))
    assert str(error.value) == (
        f"{tmp_path}/a/{name}: a dead link, which may stand for a folder; mount what it leads to, "
        "or remove the link"
    )


def test_folders_that_hold_nothing_are_told_of(tmp_path: Path) -> None:
    write(tmp_path, "a/1.wav", "hidden/.keep", "a/b/.trash/2.wav")
    (tmp_path / "c/d").mkdir(parents=True)
    told: list[str] = []
    assert len(list(files_below(tmp_path, told.append))) == 1
    assert sorted(told) == ["a/b", "c/d", "hidden"]


def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "link.wav").symlink_to("fifo.wav")
    (tmp_path / "null.wav").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(str(tmp_path / "socket.wav"))
        assert {f.problem for f in files_below(tmp_path)} == {"no regular file"}


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_folder_within_itself_is_listed_once(tmp_path: Path, target: str) -> None:
    write(tmp_path, "a/b/c/1.wav", "2.wav")
    (tmp_path / "a/b/c/up").symlink_to(target)
    assert [f.path for f in found(tmp_path)] == ["2.wav", "a/b/c/1.wav"]


def test_two_links_to_one_folder_are_both_followed(tmp_path: Path) -> None:
    write(tmp_path, "a/1.wav")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to("a")
    assert [f.path for f in found(tmp_path)] == ["a/1.wav", "b/1.wav", "c/1.wav"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"caf\xe9.wav", r"caf\xe9.wav"),
        (rb"caf\xe9.wav", r"caf\\xe9.wav"),
        (rb"a\\b\xe9\n.wav", r"a\\\\b\\xe9\\n.wav"),
        ("café \n.wav".encode(), "café \n.wav"),
        (b"\xff\xfe\\\x80.wav", r"\xff\xfe\\\x80.wav"),
    ],
)
def test_any_name_is_text_and_comes_back(tmp_path: Path, name: bytes, text: str) -> None:
    write(tmp_path, os.fsdecode(b"en/" + name))
    (file,) = files_below(tmp_path)
    assert file.path == f"en/{text}"
    assert file.path.encode()
    assert (tmp_path / as_path(file.path)).read_bytes() == b"12"
    assert as_text(str(as_path(text))) == text
