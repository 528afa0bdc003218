"""A suite as scoring sees it: files to score, and pairs of which the first should be likelier.

A suite is data and knows no model. Its order is a pure function of what lies in its folder, not of
the order in which a file system lists it or a gold file names it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import DataError, RequestError

WHOLE = "all"
"""The only split of a layout that has none."""
CHANCE = 0.5
"""What a pair is worth to a model that tosses a coin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two utterances, of which the first should be the likelier one."""

    item: str
    """What the official mean runs over: all pairs of one item, in all voices, make one score."""
    positive: str
    """Utterance id."""
    negative: str
    """Utterance id."""
    split: str = WHOLE
    voice: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    """By what official tables break scores down (frequency, length, type, subtype, task)."""
    texts: tuple[str, str] = ("", "")
    """What both say, where the layout tells."""
    weight: float = 1.0
    """Among the pairs of its item."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One official number: a mean over strata of the mean score of each one's items."""

    name: str
    definition: str
    strata: tuple[tuple[int, ...], ...]
    """Positions of items. One stratum is a mean over items (micro), several are a macro mean."""
    table: str = ""
    """The breakdown of which it is a row (frequency, length, type, task); empty for a headline."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """What a folder in an official layout holds."""

    kind: str
    """As recipes name it."""
    name: str
    """As papers name it."""
    splits: tuple[str, ...]
    files: Mapping[str, str]
    """Utterance id to its file, relative to the folder; in the order of ids."""
    pairs: tuple[Pair, ...]
    """By split and item; those of one item as the gold file has them."""
    fingerprint: str
    """SHA-256 over the gold files, and names and sizes of all audio: what a key holds of it."""

    def items(self, split: str) -> dict[str, list[Pair]]:
        """The pairs of a split by item, in the order of items."""
        found: dict[str, list[Pair]] = {}
        for pair in self.pairs:
            if pair.split == split:
                found.setdefault(pair.item, []).append(pair)
        return found

    def files_of(self, split: str) -> list[str]:
        """Ids of all utterances of a split, those without a gold row included."""
        return [name for name in self.files if self.splits == (WHOLE,) or of_split(name) == split]


def of_split(utterance: str) -> str:
    """The split that an utterance's id begins with."""
    return utterance.split("/", 1)[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One folder of a suite: its audio, and the pairs that its gold file makes of it."""

    split: str
    files: Mapping[str, tuple[str, int]]
    """Utterance id to path relative to the suite's folder, and size in bytes."""
    pairs: Sequence[Pair]
    gold: Mapping[str, str] = field(default_factory=dict)
    """Gold file to its SHA-256."""


ReadPart = Callable[[Path, Path, str], Part]


def suite_of(kind: str, name: str, parts: Sequence[Part]) -> Suite:
    """Put the parts of a suite together; ``parts`` in the order in which splits are shown.

    Raises DataError where they have not a single pair to score.
    """
    if not any(part.pairs for part in parts):
        raise DataError(f"{kind}: there is no pair to score; see that the gold files came along")
    files = dict(sorted((id_, file) for part in parts for id_, file in part.files.items()))
    pairs = sorted(
        (pair for part in parts for pair in part.pairs), key=lambda p: (p.split, natural(p.item))
    )
    listing = {
        "kind": kind,
        "gold": {path: digest for part in parts for path, digest in part.gold.items()},
        "files": sorted(files.values()),
    }
    canonical = json.dumps(listing, sort_keys=True, separators=(",", ":"))
    return Suite(
        kind=kind,
        name=name,
        splits=tuple(dict.fromkeys(part.split for part in parts)),
        files={id_: path for id_, (path, _) in files.items()},
        pairs=tuple(pairs),
        fingerprint=hashlib.sha256(canonical.encode()).hexdigest(),
    )


def natural(item: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts ids part by part, numbers by value, as the official tables do."""
    return tuple((0, int(p), p) if p.isdecimal() else (1, 0, p) for p in item.split("/"))


def open_splits(
    kind: str, name: str, root: Path, below: str, read: ReadPart, *, source: str
) -> Suite:
    """The suite of dev and test folders in ``root/below``, or else right in ``root``.

    ``read`` makes a part of the root, the folder and its split. Raises RequestError, which names
    the ``source``, where there is no such folder.
    """
    folder = root / below if (root / below).is_dir() else root
    splits = [split for split in ("dev", "test") if (folder / split).is_dir()]
    if not splits:
        raise absent(kind, root, wanted=f"{below}/dev or {below}/test", source=source)
    return suite_of(kind, name, [read(root, folder / split, split) for split in splits])


def absent(kind: str, root: Path, *, wanted: str, source: str) -> RequestError:
    """The one line for a data set that is not there: where it comes from and where it goes."""
    return RequestError(f"{kind}: {root}: holds no {wanted}; get it from {source}")


def subfolders(folder: Path) -> dict[str, Path]:
    """The folders right in one that may not be there, by name, hidden ones left out."""
    inner = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.name: path for path in inner if path.is_dir() and not path.name.startswith(".")}


def wavs(root: Path, folder: Path, prefix: str = "") -> dict[str, tuple[str, int]]:
    """The WAV files right in a folder: id (``prefix`` and the stem) to path and size.

    Hidden files, as archives made on a Mac hold them, are no audio.
    """
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122 (a Path for each is slow)
            if suffix.lower() == ".wav" and not entry.name.startswith("."):
                path = Path(entry.path).relative_to(root).as_posix()
                found[prefix + stem] = (path, entry.stat().st_size)
    return found
