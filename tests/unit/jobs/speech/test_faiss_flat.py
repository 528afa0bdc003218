"""Flat indexes, and what is none; files of faiss itself are in test_codebook_files."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from jobs.speech.faiss_flat import flat_vectors, is_faiss

VECTORS = np.arange(6, dtype="<f4").reshape(2, 3)


def index(
    *, kind: bytes = b"IxF2", dim: int = 3, count: int = 2, metric: int = 1, floats: int = 6
) -> bytes:
    """An index of two vectors, or of what it says."""
    header = struct.pack("<4siqqqBiQ", kind, dim, count, 1 << 20, 1 << 20, 1, metric, floats)
    return header + VECTORS.tobytes()


@pytest.mark.parametrize("kind", [b"IxF2", b"IxFl"])
def test_flat_vectors_are_read(kind: bytes) -> None:
    assert is_faiss(index(kind=kind))
    np.testing.assert_array_equal(flat_vectors(index(kind=kind)), VECTORS)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (index(metric=0), "for inner product"),
        (index(metric=2), "for L1"),
        (index(metric=22), "for metric 22"),
        (index(kind=b"IxPT"), "transforms vectors first"),
        (index(kind=b"IwPf"), "fast-scan product codes"),
        (index(kind=b"IxZZ"), "'IxZZ'"),
        (index()[:20], "within its header"),
        (index()[:-4], "which are not 6 numbers"),
        (index() + b"x", "which are not 6 numbers"),
        (index(dim=-3, count=-2), "-2 vectors of -3"),
        (index(dim=2**31 - 1, count=2**62), "header says"),
        (index(dim=0, count=0, floats=0), "0 vectors of 0"),
        (index(floats=2**61 + 6), "header says"),
    ],
)
def test_what_is_no_flat_index_of_l2_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        flat_vectors(data)
