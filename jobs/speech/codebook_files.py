"""Reads the centroids of a published codebook; nothing that a file holds is run.

In: an ``.npy`` array, a fitted KMeans or MiniBatchKMeans of scikit-learn (pickle or joblib,
compressed or not), or a flat L2 index of faiss, told by content. Out: ``centroids_KD``.

Shapes: K clusters, D features.
"""

from __future__ import annotations

import bz2
import lzma
import tokenize
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.speech.faiss_flat import flat_vectors, is_faiss
from jobs.speech.inert_pickle import array_of, class_of, read_inert
from orchestrator.errors import RequestError

MAX_BYTES = 2**31
"""Of a file, and of what a compressed one holds: four times the largest codebook there can be."""
_MAX_RATIO = 256
"""What is compressed better than this is no codebook."""
_MAX_CLUSTERS = 65_535
_NPY = b"\x93NUMPY"
_OF_BAD_HEADERS = (
    *(tokenize.TokenError, SyntaxError, TypeError),
    *(OverflowError, RecursionError, MemoryError),
)
"""What numpy raises, beside ValueError, for headers that say nonsense."""
_ESTIMATORS = frozenset({"KMeans", "MiniBatchKMeans"})
_REMEDY = (
    "give the centroids as an .npy of floats, one row a unit, a joblib of scikit-learn's KMeans, "
    "or a flat L2 index of faiss"
)
Decompress = Callable[[bytes, int], tuple[bytes, bool]]
"""From bytes and how many to give at most; with whether that is all."""


@dataclass(frozen=True, kw_only=True)
class PublishedCodebook:
    """What a file holds."""

    centroids_KD: npt.NDArray[np.float32]
    format: str
    """``npy``, ``joblib`` or ``faiss``."""
    dtype: str
    """Of the numbers in the file."""


def read_published(path: Path, *, where: str) -> PublishedCodebook:
    """The codebook in a file. Raises RequestError when it holds none, OSError of a disk."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"it has {size} bytes, more than any codebook")
        return _read(path)
    except ValueError as error:
        raise RequestError(f"{where}: {path}: {error}; {_REMEDY}") from None


def _read(path: Path) -> PublishedCodebook:
    with path.open("rb") as file:
        start = file.read(len(_NPY))
    if start == _NPY:
        return _sound(_npy(path), "npy")
    data = path.read_bytes()
    if is_faiss(data):
        return _sound(flat_vectors(data), "faiss")
    return _sound(_centers(read_inert(_decompressed(data))), "joblib")


def _npy(path: Path) -> npt.NDArray[Any]:
    """Mapped, since a header may promise more than the file holds."""
    try:
        with warnings.catch_warnings(action="ignore"):  # what numpy thinks of headers of Python 2
            array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except _OF_BAD_HEADERS as error:
        raise ValueError("its header is damaged") from error
    return array


def _centers(estimator: Any) -> npt.NDArray[Any]:
    """``cluster_centers_`` of a pickled estimator."""
    of = class_of(estimator)
    if of is None or not of.module.startswith("sklearn.cluster") or of.name not in _ESTIMATORS:
        what = f"a {of.module}.{of.name}" if of else "plain data"
        raise ValueError(f"it is a pickle of {what}, not of scikit-learn's KMeans")
    state = estimator.state
    if not isinstance(state, dict) or "cluster_centers_" not in state:
        raise ValueError(f"its {of.name} was not fitted: it has no cluster_centers_")
    return array_of(state["cluster_centers_"])


def _sound(array: npt.NDArray[Any], form: str) -> PublishedCodebook:
    if array.ndim != 2 or array.dtype.kind != "f":
        raise ValueError(f"it is an array of {array.ndim} dimensions and type {array.dtype}")
    if not (2 <= len(array) <= _MAX_CLUSTERS and array.shape[1]):
        raise ValueError(
            f"it has {array.shape[0]} rows of {array.shape[1]} numbers, where 2..{_MAX_CLUSTERS} "
            "units have one row each"
        )
    with np.errstate(over="ignore"):
        centroids_KD = np.array(array, np.float32, order="C")
    if not np.isfinite(centroids_KD).all():
        raise ValueError("it holds NaN or infinity")
    return PublishedCodebook(centroids_KD=centroids_KD, format=form, dtype=array.dtype.name)


def _decompressed(data: bytes) -> bytes:
    """What joblib has compressed, at most `MAX_BYTES`; anything else as it is."""
    decompress = next((d for start, d in _COMPRESSED if data.startswith(start)), None)
    if decompress is None:
        return data
    most = min(MAX_BYTES, _MAX_RATIO * len(data))
    try:
        whole, is_end = decompress(data, most)
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        raise ValueError(f"it cannot be decompressed ({error})") from None
    if not is_end:
        raise ValueError(f"it ends early, or is more than {most} bytes when decompressed")
    return whole


def _zlib(data: bytes, most: int) -> tuple[bytes, bool]:
    decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32)  # of zlib or gzip
    return decompressor.decompress(data, most), decompressor.eof


def _bz2(data: bytes, most: int) -> tuple[bytes, bool]:
    decompressor = bz2.BZ2Decompressor()
    return decompressor.decompress(data, most), decompressor.eof


def _lzma(data: bytes, most: int) -> tuple[bytes, bool]:
    decompressor = lzma.LZMADecompressor(memlimit=2**30)
    return decompressor.decompress(data, most), decompressor.eof


def _unread(name: str) -> Decompress:
    def refuse(_data: bytes, _most: int) -> tuple[bytes, bool]:
        raise ValueError(f"it is a joblib in {name}, which is not read; load and dump it again")

    return refuse


_COMPRESSED: tuple[tuple[bytes, Decompress], ...] = (
    (b"\x78", _zlib),
    (b"\x1f\x8b", _zlib),
    (b"BZh", _bz2),
    (b"\xfd7zXZ", _lzma),
    (b"\x5d\x00", _lzma),
    (b"\x04\x22\x4d\x18", _unread("lz4")),
    (b"ZF", _unread("the format before version 0.10")),
)
