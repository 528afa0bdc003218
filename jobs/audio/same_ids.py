"""Finds recordings that have one id, among tens of millions.

Eight bytes are kept of each; only where two are alike are the recordings listed again, and named.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from jobs.audio.corpora.recording import Recording

_Hashes = npt.NDArray[np.uint64]


class SameIds:
    """The ids of a source, as they pass."""

    def __init__(self) -> None:
        self._hashes: list[_Hashes] = []

    def add(self, recordings: Iterable[Recording]) -> None:
        """Take in some of them."""
        self._hashes.append(np.array([_hash(r.id) for r in recordings], np.uint64))

    def problem(self, again: Iterable[Recording]) -> str:
        """Which recordings have one id; empty when none have.

        ``again``: all of them once more, which is asked for them only where there may be some.
        """
        suspects = self._suspects()
        if not suspects:
            return ""
        first: dict[str, str] = {}
        twice = [(first[r.id], r) for r in _of_hashes(again, suspects) if _is_known(first, r)]
        if not twice:
            return ""
        path, other = twice[0]
        return (
            f"{len(twice)} recordings have the id of another: {path} and {_path(other)} are both "
            f"{other.id!r}; give each its own"
        )

    def _suspects(self) -> frozenset[int]:
        """Hashes of more than one id."""
        if not self._hashes:
            return frozenset()
        hashes = np.concatenate(self._hashes)
        self._hashes.clear()
        hashes.sort()
        return frozenset(hashes[1:][hashes[1:] == hashes[:-1]].tolist())


def _hash(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")


def _of_hashes(recordings: Iterable[Recording], hashes: frozenset[int]) -> Iterable[Recording]:
    return (recording for recording in recordings if _hash(recording.id) in hashes)


def _is_known(first: dict[str, str], recording: Recording) -> bool:
    """Whether its id was met before; if not, it is from now on."""
    is_known = recording.id in first
    first.setdefault(recording.id, _path(recording))
    return is_known


def _path(recording: Recording) -> str:
    leaf = recording.leaf
    return f"{leaf.path} in {leaf.archive}" if leaf.archive else leaf.path
