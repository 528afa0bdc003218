"""Published codebooks: each format gives the same centroids, and what is none is refused."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.speech.codebook_files import read_published
from orchestrator.errors import RequestError
from tests.unit.source import ROOT

DATA = ROOT / "tests" / "data" / "codebooks"
READ = sorted(
    p.name
    for p in DATA.iterdir()
    if p.suffix in (".npy", ".joblib", ".pickle") or p.name == "flat.faiss"
)


@pytest.mark.parametrize("name", READ)
def test_every_format_gives_the_centroids(name: str) -> None:
    read = read_published(DATA / name, where="here")
    np.testing.assert_array_equal(read.centroids_KD, np.load(DATA / "expected.npy"))
    assert read.format == {".npy": "npy", ".faiss": "faiss"}.get(Path(name).suffix, "joblib")
    assert read.dtype == ("float64" if name == "float64.npy" else "float32")
    assert read.centroids_KD.dtype == np.float32
    assert read.centroids_KD.flags.c_contiguous


def test_most_formats_are_there() -> None:
    assert len(READ) == 15


@pytest.mark.parametrize("name", ["inner-product.faiss", "ivf.faiss", "transformed.faiss"])
def test_other_indexes_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match=rf"here: .*{name}: it is .* of faiss"):
        read_published(DATA / name, where="here")


def refusal(path: Path) -> str:
    """Why a file is refused."""
    with pytest.raises(RequestError) as error:
        read_published(path, where="tokenizer.codebook")
    assert str(error.value).startswith(f"tokenizer.codebook: {path}: ")
    assert str(error.value).endswith("or a flat L2 index of faiss")
    return str(error.value)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros(3, np.float32), "1 dimensions"),
        (np.zeros((3, 2), np.int64), "type int64"),
        (np.zeros((1, 2), np.float32), "1 rows of 2"),
        (np.zeros((65_536, 1), np.float16), "65536 rows"),
        (np.full((3, 2), np.nan, np.float32), "NaN or infinity"),
        (np.full((3, 2), 1e300), "NaN or infinity"),
        (np.array([[{}]], object), "Python objects"),
    ],
)
def test_arrays_that_are_no_codebook_are_refused(array: Any, says: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    assert says in refusal(tmp_path / "a.npy")


def test_a_header_that_promises_more_is_refused(tmp_path: Path) -> None:
    whole = (DATA / "expected.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(whole.replace(b"(5, 6), }       ", b"(5000000, 60), }"))
    assert "greater than file size" in refusal(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "header",
    [
        "(" * 3_000,
        "-" * 9_000 + "1",
        "'''",
        "{1: 2, 'descr': 3}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (9" + "9" * 30 + ", 0)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True, True)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -3)}",
        "{'descr': [('a', '<f4'), ('b', '|O')], 'fortran_order': False, 'shape': (2, 3)}",
        "{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (2, 3)}",
        "{'descr': '(2,)<f4', 'fortran_order': False, 'shape': (2, 3)}",
        "{'descr': __import__('os').system('touch poisoned'), 'shape': (2, 3)}",
    ],
)
def test_a_header_that_says_nonsense_is_refused(
    header: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    size = struct.pack("<I", len(header) + 1)
    Path("a.npy").write_bytes(b"\x93NUMPY\x02\x00" + size + header.encode() + b"\n" + bytes(96))
    refusal(Path("a.npy"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


@pytest.mark.parametrize("name", READ)
def test_damage_anywhere_is_refused_or_harmless(name: str, tmp_path: Path) -> None:
    """Bytes changed, put in and left out, as a disk or an attacker would."""
    whole, rng = (DATA / name).read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        at, data = int(rng.integers(len(whole))), bytearray(whole)
        data[at : at + int(rng.integers(4))] = rng.bytes(int(rng.integers(4)))
        (tmp_path / "damaged").write_bytes(data)
        try:
            read = read_published(tmp_path / "damaged", where="here")
        except RequestError:
            continue
        assert np.isfinite(read.centroids_KD).all()


@pytest.mark.parametrize("name", READ)
def test_half_a_file_is_refused(name: str, tmp_path: Path) -> None:
    whole = (DATA / name).read_bytes()
    for size in (0, 1, 3, 7, len(whole) // 2, len(whole) - 1):
        (tmp_path / "half").write_bytes(whole[:size])
        refusal(tmp_path / "half")


def test_what_is_compressed_too_well_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bomb").write_bytes(gzip.compress(bytes(50_000_000)))
    assert "when decompressed" in refusal(tmp_path / "bomb")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"ZF0x123", "before version 0.10"),
        (b"\x04\x22\x4d\x18....", "lz4"),
        (pickle.dumps({"a": 1}), "plain data"),
        (b"csklearn.cluster._dbscan\nDBSCAN\n)\x81}b.", "sklearn.cluster._dbscan.DBSCAN"),
        (b"csklearn.cluster._kmeans\nKMeans\n)\x81}b.", "not fitted"),
        (b"csklearn.cluster._kmeans\nKMeans\n)\x81(lb.", "not fitted"),
        (b"PK\x03\x04", ""),
    ],
)
def test_files_of_others_are_refused(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    assert says in refusal(tmp_path / "file")


@pytest.mark.parametrize("name", ["kmeans.joblib", "protocol-2.pickle", "minibatch.joblib"])
def test_a_poisoned_estimator_runs_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call before the estimator's own end, as an attacker would append it to a published file."""
    monkeypatch.chdir(tmp_path)
    call = b"cposix\nsystem\n(S'touch poisoned'\ntR0"
    whole = (DATA / name).read_bytes()
    assert whole.endswith(b".")
    Path("km.bin").write_bytes(whole[:-1] + call + b".")
    with pytest.raises(RequestError, match=r"posix\.system"):
        read_published(Path("km.bin"), where="here")
    assert [path.name for path in tmp_path.iterdir()] == ["km.bin"]
