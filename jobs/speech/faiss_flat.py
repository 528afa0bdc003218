"""Reads the vectors of a flat faiss index, as ``faiss.write_index`` lays them.

Little endian: four letters of the kind, int32 D, int64 K, two int64 that mean nothing, a byte that
says trained, int32 of the metric, uint64 number of floats, the floats.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

_HEADER = struct.Struct("<4siqqqBiQ")
_L2 = 1
_METRICS = {0: "inner product", 2: "L1", 3: "Linf", 4: "Lp"}
_FLAT = frozenset({b"IxF2", b"IxFI", b"IxFl"})
_KINDS = {
    b"IxPT": "an index that transforms vectors first (PCA, OPQ or the like)",
    b"IwFl": "an inverted file (IVF) of vectors",
    b"IwPQ": "an inverted file (IVF) of product codes",
    b"IwPf": "an inverted file (IVF) of fast-scan product codes",
    b"IHNf": "an HNSW graph over vectors",
    b"IxPq": "product codes",
    b"IxSQ": "scalar codes",
}


def is_faiss(data: bytes) -> bool:
    """Whether a file begins as an index does."""
    return data[:2] in (b"Ix", b"Iw", b"IH", b"IN", b"IB", b"Ib", b"IM")


def flat_vectors(data: bytes) -> npt.NDArray[np.float32]:
    """``vectors_KD``. Raises ValueError for an index of another kind, or one that is damaged."""
    kind = data[:4]
    if kind not in _FLAT:
        raise ValueError(
            f"it is {_KINDS.get(kind, 'an index')} ({kind.decode('latin-1')!r}) of faiss, whose "
            "units are not those of the nearest centroid alone; only flat L2 indexes are read"
        )
    if len(data) < _HEADER.size:
        raise ValueError("it ends within its header")
    _, dim, count, _, _, _, metric, num_floats = _HEADER.unpack_from(data)
    if metric != _L2:
        raise ValueError(
            f"it is a flat index of faiss for {_METRICS.get(metric, f'metric {metric}')}; only L2 "
            "gives the nearest centroid"
        )
    if not (dim > 0 and count > 0 and num_floats == dim * count):
        raise ValueError(f"its header says {count} vectors of {dim}, and {num_floats} numbers")
    if len(data) != _HEADER.size + 4 * num_floats:
        raise ValueError(f"it has {len(data)} bytes, which are not {num_floats} numbers")
    return np.frombuffer(data, "<f4", offset=_HEADER.size).reshape(count, dim)
