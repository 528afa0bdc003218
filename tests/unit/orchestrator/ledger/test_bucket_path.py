"""A source's files in a bucket, read whole or in ranges."""

from __future__ import annotations

import io
import pickle
import random

import obstore
import pytest

from orchestrator.ledger.bucket_path import WHOLE_BYTES, BucketPath
from orchestrator.ledger.object_store import _memory
from orchestrator.ledger.source_files import as_path, files_below, versions_below

LARGE = random.Random(0).randbytes(WHOLE_BYTES + (3 << 20))


@pytest.fixture
def root(request: pytest.FixtureRequest) -> BucketPath:
    """A bucket of this process, and a folder of it."""
    return BucketPath(f"memory://{request.node.originalname}/corpus")


def put(root: BucketPath, name: str, data: bytes) -> None:
    bucket = root.url.removesuffix("/corpus")
    obstore.put(_memory(bucket), f"corpus/{name}", data, use_multipart=False)


def test_what_is_listed_is_what_a_folder_would_show(root: BucketPath) -> None:
    for name in ("a/b c é%20#.wav", "a/.hidden", ".kept/1.wav", "empty.wav", "z.wav", "back\\.wav"):
        put(root, name, b"" if name.startswith("empty") else b"12")
    obstore.put(_memory(root.url.removesuffix("/corpus")), "corpus-2/other.wav", b"x")
    found = sorted(files_below(root))
    assert found == [
        ("a/b c é%20#.wav", 2, ""),
        ("back\\\\.wav", 2, ""),
        ("empty.wav", 0, ""),
        ("z.wav", 2, ""),
    ]
    for path, size, _ in found:
        with (root / as_path(path)).open() as file:
            assert len(file.read()) == size


def test_more_than_a_page_is_listed_once_each(root: BucketPath) -> None:
    names = [f"{n:05d}.wav" for n in range(2500)]
    for name in names:
        put(root, name, b"1")
    assert [path for path, _ in root.walk()] == names


def test_an_object_that_is_written_anew_has_another_version(root: BucketPath) -> None:
    found = []
    for data in (b"one", b"two"):
        put(root, "a.tar", data)
        put(root, "b.wav", data)
        found += versions_below(root, ".tar")
    assert [seen[:2] for seen in found] == [("a.tar", 3)] * 2
    assert found[0] != found[1]


def test_a_large_object_is_read_as_a_file_is(root: BucketPath) -> None:
    put(root, "large", LARGE)
    path = pickle.loads(pickle.dumps(root / "large"))
    assert path.size() == len(LARGE)
    with path.open() as file:
        assert file.read() == LARGE
        assert file.seek(-5, io.SEEK_END) == len(LARGE) - 5
        assert file.read(100) == LARGE[-5:]
        assert file.read(1) == b""
        for at in (9_000_000, 17, WHOLE_BYTES - 1, WHOLE_BYTES, 10_000_000):
            file.seek(at)
            assert file.read(300_000) == LARGE[at : at + 300_000]


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 5), (7, 100), (100, len(LARGE) - 100), (5, WHOLE_BYTES + 5), (3, 0)]
)
def test_a_stretch_of_one_is_a_file_of_its_own(root: BucketPath, offset: int, size: int) -> None:
    put(root, "large", LARGE)
    with (root / "large").stretch(offset, size) as file:
        assert file.read() == LARGE[offset : offset + size]
        assert file.seek(0, io.SEEK_END) == size


def test_what_is_missing_is_told_from_a_folder_that_is_not_there(root: BucketPath) -> None:
    put(root, "there", b"1")
    with pytest.raises(FileNotFoundError, match=r"corpus/gone: is not in its bucket \(any more\)"):
        (root / "gone").open()
    with pytest.raises(FileNotFoundError, match=r"elsewhere: holds nothing"):
        (BucketPath(root.url.replace("corpus", "elsewhere")) / "gone").open()
    root.require()


def test_one_that_became_shorter_says_so(root: BucketPath) -> None:
    put(root, "large", LARGE)
    with (root / "large").open() as file:
        put(root, "large", LARGE[: WHOLE_BYTES + 5])
        file.seek(WHOLE_BYTES)
        with pytest.raises(OSError, match="shorter than when"):
            file.read(100)
