"""A recording as the adapters of corpora list it, and what those share that take files as they lie.

Adapters of lists read them with `jobs.audio.lists`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from jobs.audio.trees import Leaf

NO_SPEECH = "no speech"


class Recording(NamedTuple):
    """One recording of a source: bytes of a file, all of them or some stretches of time."""

    id: str
    """The corpus' own; unique within the source, the same in every container."""
    leaf: Leaf
    """Where its bytes are."""
    spans_s: tuple[tuple[float, float], ...] = ()
    """From when to when, in seconds of the file, what belongs together in order; empty for all."""
    channel: int | None = None
    """Which one the corpus means, counted from 0; None where it means all of them."""
    language: str = ""
    """ISO 639 code; empty where the corpus says none."""
    speaker: str = ""
    session: str = ""
    """What recordings have in common that should not be torn apart by a split: a book, a show."""
    left_out: str = ""
    """Why the corpus' own metadata says that it should not be used; empty when it may be."""


def by_stem(leaves: Iterable[Leaf]) -> Iterator[tuple[str, Leaf]]:
    """Each audio file with its path without the suffix; ``leaves`` in the order of their paths.

    With it where two differ in that, and where another is called so: ``a.wav.flac`` by ``a.wav``.
    """
    for alike in up_to_a_dot(leaf for leaf in leaves if leaf.is_audio):
        paths = frozenset(leaf.path for leaf in alike)
        stems = Counter(map(stem, paths))
        for leaf in alike:  # two of one path, in two tars, have one name: they are refused by it
            name = stem(leaf.path)
            yield (name if stems[name] == 1 and name not in paths else leaf.path), leaf


def up_to_a_dot(leaves: Iterable[Leaf]) -> Iterator[list[Leaf]]:
    """Files with the same path up to the first dot of their names; between them may be a folder.

    ``leaves`` in the order of their paths.
    """
    pending: list[tuple[str, list[Leaf]]] = []
    for leaf in leaves:
        folder, slash, name = leaf.path.rpartition("/")
        begin = folder + slash + name.partition(".")[0] + "."
        while pending and not leaf.path.startswith(pending[-1][0]):
            yield pending.pop()[1]
        if not pending or pending[-1][0] != begin:
            pending.append((begin, []))
        pending[-1][1].append(leaf)
    yield from (alike for _, alike in reversed(pending))


def stem(path: str) -> str:
    """A path without its last suffix."""
    return str(PurePosixPath(path).with_suffix(""))
