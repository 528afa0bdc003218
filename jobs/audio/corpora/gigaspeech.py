"""GigaSpeech: long Opus files, and one large JSON with their segments (arXiv 2106.06909).

``GigaSpeech.json``: ``{"audios": [{"aid", "path", "segments": [{"sid", "speaker", "begin_time",
"end_time", "text_tn"}]}]}``. Segments that are no speech say so in place of words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import ijson

from jobs.audio.corpora.recording import NO_SPEECH, Recording
from jobs.audio.lists import BOM, Files, items, seconds, value
from jobs.audio.trees import Leaf, Tree
from orchestrator.errors import DataError

ANNOTATIONS = "GigaSpeech.json"
_NO_SPEECH = {"<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"}


def recordings(tree: Tree) -> Iterator[Recording]:
    """All segments, in English; a session is a file.

    The JSON is read piece by piece: it takes more than a gigabyte. Raises DataError when it is not
    there.
    """
    leaves = list(tree.leaves())
    found = [leaf for leaf in leaves if PurePosixPath(leaf.path).name == ANNOTATIONS]
    if len(found) != 1:
        raise DataError(f"needs one {ANNOTATIONS} below its root, and has {len(found)}")
    (annotations,) = found
    folder, files = PurePosixPath(annotations.path).parent, Files(tree, leaves)
    for number, audio in enumerate(_audios(tree, annotations)):
        where = f"{annotations.path}: audios[{number}]"
        leaf = files.named(where, str(folder / str(value(audio, "path", where))))
        session = str(value(audio, "aid", where))
        for segment in items(audio, "segments", where):
            yield _recording(segment, leaf, session, where)


def _recording(segment: Mapping[str, Any], leaf: Leaf, session: str, where: str) -> Recording:
    name = str(value(segment, "sid", where))
    words = set(str(segment.get("text_tn") or "").split())
    return Recording(
        name,
        leaf,
        spans_s=(_span(segment, f"{where}: {name}"),),
        language="en",
        speaker=str(segment.get("speaker") or ""),
        session=session,
        left_out=NO_SPEECH if words and words <= _NO_SPEECH else "",
    )


def _span(segment: Mapping[str, Any], where: str) -> tuple[float, float]:
    times = ("begin_time", "end_time")
    start, end = (seconds(value(segment, name, where), name, where) for name in times)
    return start, end


def _audios(tree: Tree, annotations: Leaf) -> Iterator[Mapping[str, Any]]:
    with tree.place(annotations).open() as file:
        if file.read(len(BOM)) != BOM:
            file.seek(0)
        try:
            yield from ijson.items(file, "audios.item", use_float=True)
        except ijson.JSONError as error:
            raise DataError(
                f"{annotations.path}: is no JSON ({str(error).splitlines()[0]}); fetch it again"
            ) from None
