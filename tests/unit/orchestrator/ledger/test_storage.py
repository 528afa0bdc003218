"""Objects appear whole or not at all, once, on a path and on an object store alike."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Barrier

import pytest

from orchestrator.errors import AlreadyExistsError, CorruptError
from orchestrator.ledger.path_store import TEMPORARY
from orchestrator.ledger.storage import Storage, sha256_of, to_json

FORK = multiprocessing.get_context("fork")


def test_what_was_created_is_read(storage: Storage) -> None:
    assert not storage.exists("a/b.bin")
    storage.create("a/b.bin", b"bytes")
    assert storage.exists("a/b.bin")
    assert storage.read_bytes("a/b.bin") == b"bytes"
    assert storage.digest("a/b.bin") == hashlib.sha256(b"bytes").hexdigest()


def test_creation_is_exclusive(storage: Storage) -> None:
    storage.create("a", b"first")
    with pytest.raises(AlreadyExistsError) as raised:
        storage.create("a", b"second")
    assert str(raised.value) == f"{storage.url}/a: already exists"
    assert storage.read_bytes("a") == b"first"


def test_replace_overwrites_and_creates(storage: Storage) -> None:
    storage.replace("a/b", b"first")
    storage.replace("a/b", b"2")
    assert storage.read_bytes("a/b") == b"2"
    assert storage.list() == {"a/b": 1}


def test_json_keeps_every_digit(storage: Storage) -> None:
    value = {"b": 0.1 + 0.2, "a": ["é", None, 2**53]}
    storage.create_json("v.json", value)
    assert storage.read_json("v.json") == value
    assert storage.read_bytes("v.json") == to_json(value)
    assert to_json({"b": 1, "a": 2}) == b'{\n "a": 2,\n "b": 1\n}\n'


def test_bytes_of_a_name_that_are_no_utf_8_are_kept_in_json(storage: Storage) -> None:
    words = {"said": os.fsdecode(b"/data/caf\xe9: Input/output error"), "caf\xe9": "\u65e5\u672c"}
    storage.create_json("a", words)
    assert storage.read_json("a") == words


@pytest.mark.parametrize("stray", [".DS_Store", ".nfs0000000001", "readme.txt", "lost+found"])
def test_what_has_no_number_is_passed_over(storage: Storage, stray: str) -> None:
    storage.create(f"cancel/{stray}", b"?")
    assert storage.create_next("cancel", ".json", lambda n: n) == 1
    assert storage.create_next("cancel", ".json", lambda n: n) == 2
    assert storage.numbers("cancel") == (1, 2)


def test_json_that_does_not_parse_is_corrupt(storage: Storage) -> None:
    storage.create("v.json", b'{"a": ')
    with pytest.raises(CorruptError, match=r"v\.json: not valid JSON .*; remove it"):
        storage.read_json("v.json")


def test_what_is_not_there(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("a")
    assert storage.list() == {}
    assert storage.list("a") == {}
    assert storage.children() == ()
    assert storage.children("a/b") == ()
    storage.delete("a/b")


@pytest.mark.parametrize(
    ("start", "data"),
    [(0, b"0123"), (1, b"123"), (4, b""), (9, b""), (-1, b"3"), (-4, b"0123"), (-9, b"0123")],
)
def test_a_part_is_read(storage: Storage, start: int, data: bytes) -> None:
    storage.create("log", b"0123")
    assert storage.read_bytes("log", start=start) == data
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("none", start=start)


def test_listing_is_recursive_and_sorted(storage: Storage) -> None:
    for path, size in (("b/2", 2), ("a", 1), ("b/c/3", 3), ("bb", 4)):
        storage.create(path, b"x" * size)
    assert list(storage.list().items()) == [("a", 1), ("b/2", 2), ("b/c/3", 3), ("bb", 4)]
    assert storage.list("b") == {"b/2": 2, "b/c/3": 3}
    assert storage.children() == ("a", "b", "bb")
    assert storage.children("b") == ("2", "c")


def test_a_folder_below(storage: Storage) -> None:
    below = storage.at("x", "y")
    assert below.url == f"{storage.url}/x/y"
    below.create("z", b"1")
    assert storage.list() == {"x/y/z": 1}
    assert below.list() == {"z": 1}


def test_deletion_leaves_no_empty_folders(storage: Storage) -> None:
    storage.create("a/b/c", b"1")
    storage.create("a/d", b"1")
    storage.delete("a/b/c")
    assert storage.children("a") == ("d",)
    storage.delete("a/d")
    assert storage.children() == ()


def test_upload_and_fetch(storage: Storage, tmp_path: Path) -> None:
    local = tmp_path / "local.bin"
    local.write_bytes(b"bytes")
    digest = storage.upload(local, "a/b.bin")
    assert digest == sha256_of(local) == hashlib.sha256(b"bytes").hexdigest()
    fetched = storage.fetch("a/b.bin", tmp_path / "into")
    assert fetched.read_bytes() == b"bytes"


def test_the_same_upload_twice_is_fine_and_another_is_not(storage: Storage, tmp_path: Path) -> None:
    local = tmp_path / "local.bin"
    local.write_bytes(b"bytes")
    assert storage.upload(local, "a") == storage.upload(local, "a")
    local.write_bytes(b"other")
    with pytest.raises(CorruptError) as raised:
        storage.upload(local, "a")
    assert str(raised.value) == f"{storage.url}/a: holds other bytes than {local}"
    assert storage.read_bytes("a") == b"bytes"


def test_an_object_is_not_a_folder_of_itself(storage: Storage) -> None:
    for path in ("a/1", "ab/2", "a.json"):
        storage.create(path, b"x")
    assert (storage.list("a"), storage.children("a")) == ({"a/1": 1}, ("1",))
    assert (storage.list("a.json"), storage.children("a.json")) == ({}, ())


def test_temporary_files_are_never_listed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / f"{TEMPORARY}0123").write_bytes(b"half")
    (tmp_path / f"{TEMPORARY}4567").write_bytes(b"half")
    assert Storage(str(tmp_path)).list() == {}
    assert Storage(str(tmp_path)).children() == ("a",)
    assert Storage(str(tmp_path)).children("a") == ()


def test_nothing_temporary_stays_behind(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.create("a", b"1")
    storage.replace("a", b"2")
    with pytest.raises(AlreadyExistsError):
        storage.create("a", b"3")
    assert [p.name for p in tmp_path.rglob("*")] == ["a"]


def test_one_of_eight_threads_wins(tmp_path: Path) -> None:
    storage, together = Storage(str(tmp_path)), Barrier(8)

    def attempt(worker: int, name: str) -> int | None:
        together.wait()
        try:
            storage.create(name, bytes([worker]) * 1000)
        except AlreadyExistsError:
            return None
        return worker

    with ThreadPoolExecutor(8) as pool:
        for turn in range(10):
            name = f"race/{turn}"
            winners = [w for w in pool.map(attempt, range(8), [name] * 8) if w is not None]
            assert len(winners) == 1
            assert storage.read_bytes(name) == bytes(winners) * 1000


def test_creating_beside_a_deletion_of_the_last_object(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))

    def work(worker: int) -> None:
        for turn in range(20):
            storage.create(f"folder/{worker}-{turn}", b"x")
            storage.delete(f"folder/{worker}-{turn}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert storage.list() == {}


def _write_for_ever(root: str, seed: int) -> None:
    storage = Storage(root)
    for turn in range(10_000):
        data = os.urandom(1 << 21)
        name = hashlib.sha256(data).hexdigest()
        storage.create(f"created/{seed}-{turn}/{name}", data)
        storage.replace("replaced", name.encode() + data)


def _kill_while_writing(process: BaseProcess, root: Path) -> bool:
    """Whether the process died with a temporary file open."""
    process.start()
    while not list(root.rglob(f"{TEMPORARY}*")):
        time.sleep(0.001)
    process.kill()
    process.join()
    return bool(list(root.rglob(f"{TEMPORARY}*")))


def test_killed_writers_leave_no_partial_object(tmp_path: Path) -> None:
    storage, interrupted, num_checked = Storage(str(tmp_path)), 0, 0
    for seed in range(6):
        process = FORK.Process(target=_write_for_ever, args=(str(tmp_path), seed))
        interrupted += _kill_while_writing(process, tmp_path)
        for leftover in tmp_path.rglob(f"{TEMPORARY}*"):
            leftover.unlink()
        for path in storage.list():
            data = storage.read_bytes(path)
            name = path.rsplit("/", 1)[-1]
            if path == "replaced":
                name, data = data[:64].decode(), data[64:]
            assert hashlib.sha256(data).hexdigest() == name
            num_checked += 1
    assert interrupted > 0
    assert num_checked + interrupted >= 6


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}")
    assert storage.local_root == tmp_path
    assert storage.url == str(tmp_path)
    assert repr(storage) == f"Storage('{tmp_path}')"


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Storage("store").url == str(tmp_path / "store")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Storage("~/store").url == str(tmp_path / "store")


def test_an_upload_ticks(storage: Storage, tmp_path: Path) -> None:
    local, ticks = tmp_path / "local.bin", []
    local.write_bytes(bytes(3 << 20))
    storage.upload(local, "a", lambda: ticks.append(None))
    assert ticks


class _Stop(BaseException):
    """What a signal's handler raises."""


def test_a_signal_is_never_taken_for_a_missing_object(tmp_path: Path) -> None:
    """A look at a store lasts as long as its file system likes; a signal may come in it."""
    storage = Storage(str(tmp_path))

    def stop(*_: object) -> None:
        raise _Stop

    def look_until_stopped() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.002)
        while True:
            storage.exists("a")

    before = signal.signal(signal.SIGALRM, stop)
    try:
        for _ in range(50):
            with pytest.raises(_Stop):
                look_until_stopped()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_what_cannot_be_looked_at_is_not_missing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File name too long"):
        Storage(str(tmp_path)).exists("a" * 300)
