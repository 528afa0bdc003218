"""VoxPopuli: speeches of the European Parliament (arXiv 2101.00390).

Raw: ``raw_audios/<language>/<year>/<event>.ogg``, where the language is the channel of its
interpreters; cut: ``unlabelled_data/<language>/<year>/<event>_<n>.ogg``; transcribed:
``transcribed_data/<language>/<year>/<session>-<id>.ogg`` with ``asr_{train,dev,test}.tsv`` beside
the years. Where ``annotations/unlabelled_v2.tsv.gz`` lies below the root, raw events are taken as
the speech that it lists.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from jobs.audio.corpora.recording import Recording, by_stem
from jobs.audio.lists import rows, seconds
from jobs.audio.trees import Leaf, Tree

_RAW, _CUT, _TRANSCRIBED = "raw_audios", "unlabelled_data", "transcribed_data"
_ORIGINAL = "original"
"""The channel of the floor: every language."""


def recordings(tree: Tree) -> Iterator[Recording]:
    """All recordings of whichever parts are there; a session is a day's event."""
    leaves = list(tree.leaves())
    spans, speakers = _spans(tree, leaves), _speakers(tree, leaves)
    for name, leaf in by_stem(leaves):
        path = PurePosixPath(leaf.path)
        part = next((p for p in path.parts if p in (_RAW, _CUT, _TRANSCRIBED)), "")
        language = path.parts[path.parts.index(part) + 1] if part else ""
        yield Recording(
            name,
            leaf,
            spans_s=spans.get(path.stem, ()) if part == _RAW else (),
            language="" if language == _ORIGINAL else language,
            speaker=speakers.get(path.stem, ""),
            session=_event(path.stem, part),
        )


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


def _speakers(tree: Tree, leaves: Sequence[Leaf]) -> dict[str, str]:
    """The speaker of each transcribed utterance, by its id."""
    subsets = ("train", "dev", "test")
    names = {f"asr_{subset}.tsv{packed}" for subset in subsets for packed in ("", ".gz")}
    return {
        row["id"]: row["speaker_id"]
        for leaf in leaves
        if PurePosixPath(leaf.path).name in names
        for _, row in rows(tree, leaf, "\t", ("id", "speaker_id"))
    }
