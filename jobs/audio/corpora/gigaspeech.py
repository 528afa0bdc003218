"""GigaSpeech: long Opus files, and one large JSON with their segments (arXiv 2106.06909).

``GigaSpeech.json``: ``{"audios": [{"aid", "path", "segments": [{"sid", "speaker", "begin_time",
"end_time", "text_tn"}]}]}``. Segments that are no speech say so in place of words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import ijson

from jobs.audio.corpora.recording import NO_SPEECH, Recording, listed, value
from jobs.audio.trees import Leaf, Tree
from orchestrator.errors import DataError

ANNOTATIONS = "GigaSpeech.json"
_NO_SPEECH = {"<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"}


def recordings(tree: Tree) -> Iterator[Recording]:
    """All segments, in English; a session is a file.

    The JSON is read piece by piece: it takes more than a gigabyte. Raises DataError when it is not
    there.
    """
    leaves = {leaf.path: leaf for leaf in tree.leaves()}
    found = [leaf for path, leaf in leaves.items() if PurePosixPath(path).name == ANNOTATIONS]
    if len(found) != 1:
        raise DataError(f"needs one {ANNOTATIONS} below its root, and has {len(found)}")
    (annotations,) = found
    folder = PurePosixPath(annotations.path).parent
    for audio in _audios(tree, annotations):
        leaf = listed(leaves, str(folder / value(audio, "path", annotations.path)))
        segments = value(audio, "segments", annotations.path)
        yield from (_recording(segment, audio, leaf) for segment in segments)


def _recording(segment: Mapping[str, Any], audio: Mapping[str, Any], leaf: Leaf) -> Recording:
    words = set(str(segment.get("text_tn") or "").split())
    return Recording(
        str(value(segment, "sid", ANNOTATIONS)),
        leaf,
        spans_s=(_span(segment),),
        language="en",
        speaker=str(segment.get("speaker") or ""),
        session=str(audio["aid"]),
        left_out=NO_SPEECH if words and words <= _NO_SPEECH else "",
    )


def _span(segment: Mapping[str, Any]) -> tuple[float, float]:
    start, end = (value(segment, name, ANNOTATIONS) for name in ("begin_time", "end_time"))
    return float(start), float(end)


def _audios(tree: Tree, annotations: Leaf) -> Iterator[Mapping[str, Any]]:
    with tree.place(annotations).open() as file:
        try:
            yield from ijson.items(file, "audios.item", use_float=True)
        except ijson.JSONError as error:
            raise DataError(
                f"{annotations.path}: is no JSON ({str(error).splitlines()[0]}); fetch it again"
            ) from None
