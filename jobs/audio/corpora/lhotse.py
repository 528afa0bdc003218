"""Lhotse: cuts with their recordings in files, or in the tars of Shar (github.com/lhotse-speech).

``cuts*.jsonl.gz`` in any folder; without any, ``recordings*.jsonl.gz``. In Shar the audio of cut
``x`` is the member ``x.flac`` of ``recording.000000.tar`` beside ``cuts.000000.jsonl.gz``, cut
already.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from jobs.audio.corpora.recording import Recording, json_lines, language_code, listed, stem, value
from jobs.audio.trees import Leaf, Tree
from orchestrator.errors import DataError

_CUTS, _RECORDINGS = (re.compile(rf"{name}[^/]*\.jsonl(\.gz)?") for name in ("cuts", "recordings"))


def recordings(tree: Tree) -> Iterator[Recording]:
    """All cuts, or all recordings where there are none.

    Raises DataError for a cut of several pieces.
    """
    leaves = list(tree.leaves())
    audio = _Audio(leaves)
    manifests = [leaf for leaf in leaves if _CUTS.fullmatch(PurePosixPath(leaf.path).name)]
    for manifest in manifests:
        for number, cut in enumerate(json_lines(tree, manifest), 1):
            yield _of_cut(cut, audio, manifest, f"{manifest.path}: line {number}")
    if manifests:
        return
    for manifest in leaves:
        if _RECORDINGS.fullmatch(PurePosixPath(manifest.path).name):
            for number, row in enumerate(json_lines(tree, manifest), 1):
                where = f"{manifest.path}: line {number}"
                name = str(value(row, "id", where))
                yield Recording(name, audio.of(row, name, manifest, where))


class _Audio:
    """Finds the file of a recording's source."""

    def __init__(self, leaves: list[Leaf]) -> None:
        self._by_path = {leaf.path: leaf for leaf in leaves if leaf.is_audio}
        self._by_stem = {stem(path): leaf for path, leaf in self._by_path.items()}

    def of(self, recording: Mapping[str, Any], name: str, manifest: Leaf, where: str) -> Leaf:
        """The file, by its path or, in Shar, by the cut's name. Raises DataError for several."""
        sources = value(recording, "sources", where)
        if len(sources) != 1:
            raise DataError(f"{where}: its recording has {len(sources)} sources; one is understood")
        folder = PurePosixPath(manifest.path).parent
        if sources[0].get("type") == "shar":
            return listed(self._by_stem, str(folder / name))
        path = str(sources[0].get("source") or "")
        return listed(self._by_path, path, str(folder / path))


def _of_cut(cut: Mapping[str, Any], audio: _Audio, manifest: Leaf, where: str) -> Recording:
    if "recording" not in cut:
        raise DataError(f"{where}: a cut without one recording ({cut.get('type')}); write others")
    name, recording = str(value(cut, "id", where)), cut["recording"]
    said = (cut.get("supervisions") or [{}])[0]
    start, length = float(cut.get("start") or 0), float(value(cut, "duration", where))
    is_whole = start == 0 and length >= float(recording.get("duration") or length)
    return Recording(
        name,
        audio.of(recording, name, manifest, where),
        channel=_channel(cut, recording),
        spans_s=() if is_whole or _is_shar(recording) else ((start, start + length),),
        language=language_code(str(said.get("language") or "")),
        speaker=str(said.get("speaker") or ""),
        session="" if recording.get("id") == name else str(recording.get("id") or ""),
    )


def _channel(cut: Mapping[str, Any], recording: Mapping[str, Any]) -> int | None:
    """The one of the recording's channels that a cut is of; Shar holds no other."""
    there = [c for source in recording.get("sources") or () for c in source.get("channels") or ()]
    is_one_of_several = isinstance(cut.get("channel"), int) and len(there) > 1
    if not is_one_of_several or _is_shar(recording):
        return None
    return there.index(cut["channel"]) if cut["channel"] in there else cut["channel"]


def _is_shar(recording: Mapping[str, Any]) -> bool:
    return any(source.get("type") == "shar" for source in recording.get("sources") or ())
