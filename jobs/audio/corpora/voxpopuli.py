"""VoxPopuli: speeches of the European Parliament (arXiv 2101.00390).

Raw: ``raw_audios/<language>/<year>/<event>.ogg``, where the language is the channel of its
interpreters; cut: ``unlabelled_data/<language>/<year>/<event>_<n>.ogg``; transcribed:
``transcribed_data/<language>/<year>/<session>-<id>.ogg`` with ``asr_{train,dev,test}.tsv`` beside
the years. Where ``annotations/unlabelled_v2.tsv.gz`` lies below the root, raw events are taken as
the speech that it lists; others of a year in which it lists some are left out. What a list names of
a year and language that are there, and is not, is quarantined.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import PurePosixPath
from typing import NamedTuple

from jobs.audio.corpora.recording import Recording, by_stem, stem
from jobs.audio.lists import NOT_BELOW_ROOT, rows, seconds
from jobs.audio.trees import Leaf, Tree

_RAW, _CUT, _TRANSCRIBED = "raw_audios", "unlabelled_data", "transcribed_data"
_ORIGINAL = "original"
"""The channel of the floor: every language."""


def recordings(tree: Tree) -> Iterator[Recording]:
    """All recordings of whichever parts are there; a session is a day's event."""
    leaves = list(tree.leaves())
    spans, speakers = _spans(tree, leaves), _speakers(tree, leaves)
    years = {_year_of(event) for event in spans}
    raw = (_Listed(_RAW, *_year_of(event), event) for event in spans)
    cut = (_Listed(_TRANSCRIBED, language, name[:4], name) for language, name in speakers)
    for path in _missing(leaves, chain(raw, cut)):
        yield _recording(stem(str(path)), Leaf(str(path), 0, problem=NOT_BELOW_ROOT))
    for name, leaf in by_stem(leaves):
        path, recording = PurePosixPath(leaf.path), _recording(name, leaf)
        event, is_raw = path.stem, _part(path) == _RAW
        is_unlisted = is_raw and event not in spans and _year_of(event) in years
        yield recording._replace(
            spans_s=spans.get(event, ()) if is_raw else (),
            speaker=speakers.get((recording.language, event), ""),
            left_out="not in unlabelled_v2.tsv" if is_unlisted else "",
        )


def _recording(name: str, leaf: Leaf) -> Recording:
    """What its path says of it."""
    path = PurePosixPath(leaf.path)
    part = _part(path)
    language = path.parts[path.parts.index(part) + 1] if part else ""
    return Recording(
        name,
        leaf,
        language="" if language == _ORIGINAL else language,
        session=_event(path.stem, part),
    )


def _part(path: PurePosixPath) -> str:
    return next((part for part in path.parts if part in (_RAW, _CUT, _TRANSCRIBED)), "")


def _year_of(event: str) -> tuple[str, str]:
    """Language and year of a raw event, ``20090914-0900-PLENARY-3_en``."""
    return event.rpartition("_")[2], event[:4]


class _Listed(NamedTuple):
    """What a list says to be there."""

    part: str
    language: str
    year: str
    name: str


def _missing(leaves: Sequence[Leaf], listed: Iterable[_Listed]) -> Iterator[PurePosixPath]:
    """What is listed of a year and language of which something is there, and is not there."""
    heard = [PurePosixPath(leaf.path) for leaf in leaves if leaf.is_audio]
    folders = {(_part(path), *path.parts[-3:-1]): path.parent for path in heard}
    there = {path.with_suffix("") for path in heard}
    for part, language, year, name in listed:
        folder = folders.get((part, language, year))
        if folder is not None and folder / name not in there:
            yield folder / f"{name}.ogg"


def _event(name: str, part: str) -> str:
    """``20090914-0900-PLENARY`` of all that is cut from it, ``20090914-0900-PLENARY-3_en_12``."""
    if part == _CUT:
        name = name.rpartition("_")[0]
    return "-".join(name.partition("_")[0].split("-")[:3])


def _spans(tree: Tree, leaves: Sequence[Leaf]) -> dict[str, tuple[tuple[float, float], ...]]:
    """The stretches of speech of each raw event."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for leaf in leaves:
        if PurePosixPath(leaf.path).name in ("unlabelled_v2.tsv", "unlabelled_v2.tsv.gz"):
            for where, row in rows(tree, leaf, "\t", ("event_id", "segment_no", "start", "end")):
                start, end = (seconds(row[name], name, where) for name in ("start", "end"))
                found[row["event_id"]].append((start, end))
    return {event: tuple(sorted(stretches)) for event, stretches in found.items()}


def _speakers(tree: Tree, leaves: Sequence[Leaf]) -> dict[tuple[str, str], str]:
    """The speaker of each transcribed utterance, by its language and id."""
    subsets = ("train", "dev", "test")
    names = {f"asr_{subset}.tsv{packed}" for subset in subsets for packed in ("", ".gz")}
    tables = [leaf for leaf in leaves if PurePosixPath(leaf.path).name in names]
    return {
        (PurePosixPath(table.path).parent.name, row["id"]): row["speaker_id"]
        for table in tables
        for _, row in rows(tree, table, "\t", ("id", "speaker_id"))
    }
