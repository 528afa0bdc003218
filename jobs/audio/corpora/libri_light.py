"""Libri-Light: whole chapters with voice activity (arXiv 1912.07875, facebookresearch/libri-light).

``{small,medium,large,duplicate}/<speaker>/<book>/<stem>_64kb.flac`` and ``<stem>_64kb.json`` with
``speaker`` and ``voice_activity``, stretches of speech in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from jobs.audio.corpora.recording import NO_SPEECH, Recording, by_stem, stem
from jobs.audio.lists import NOT_BELOW_ROOT, items, json_of, stretch, value
from jobs.audio.trees import Leaf, Tree
from orchestrator.errors import DataError

DUPLICATE = "duplicate"
"""The part whose books may be in the others as well."""


def recordings(tree: Tree) -> Iterator[Recording]:
    """All chapters, in English, as their speech; a session is a book.

    One of which only the JSON is there has that as its problem. Raises DataError for a chapter
    without its JSON.
    """
    leaves = list(tree.leaves())
    about = {stem(leaf.path): leaf for leaf in leaves if leaf.path.endswith(".json")}
    heard = {stem(leaf.path) for leaf in leaves if leaf.is_audio}
    for name in (name for name in about if name.endswith("_64kb") and name not in heard):
        yield Recording(name, Leaf(f"{name}.flac", 0, problem=NOT_BELOW_ROOT), language="en")
    for name, leaf in by_stem(leaves):
        path = PurePosixPath(leaf.path)
        beside = about.get(stem(leaf.path))
        if beside is None:
            raise DataError(f"{leaf.path}: has no .json beside it; fetch it again")
        facts = json_of(tree, beside)
        spans = items(facts, "voice_activity", beside.path)
        yield Recording(
            name,
            leaf,
            spans_s=tuple(stretch(span, beside.path) for span in spans),
            language="en",
            speaker=str(value(facts, "speaker", beside.path)),
            session=str(path.parent),
            left_out=_left_out(path, spans),
        )


def _left_out(path: PurePosixPath, spans: Sequence[object]) -> str:
    if DUPLICATE in path.parts[:-3]:
        return DUPLICATE
    return "" if spans else NO_SPEECH
