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

from jobs.audio.corpora.recording import Recording, stem
from jobs.audio.languages import language_code
from jobs.audio.lists import NOT_BELOW_ROOT, Files, items, json_lines, seconds, value
from jobs.audio.trees import Leaf, Tree
from orchestrator.errors import DataError

_CUTS, _RECORDINGS = (re.compile(rf"{name}[^/]*\.jsonl(\.gz)?") for name in ("cuts", "recordings"))


def recordings(tree: Tree) -> Iterator[Recording]:
    """All cuts, or all recordings where there are none.

    Raises DataError for a cut of several pieces, and where there are no such manifests.
    """
    leaves = list(tree.leaves())
    audio = _Audio(tree, leaves)
    cuts, whole = (_named(leaves, pattern) for pattern in (_CUTS, _RECORDINGS))
    if not cuts and not whole:
        raise DataError("has no cuts*.jsonl.gz and no recordings*.jsonl.gz; save one of them there")
    for manifest in cuts:
        for where, cut in json_lines(tree, manifest):
            yield _of_cut(cut, audio, manifest, where)
    for manifest in () if cuts else whole:
        for where, row in json_lines(tree, manifest):
            name = str(value(row, "id", where))
            yield Recording(name, audio.of(row, name, manifest, where))


def _named(leaves: list[Leaf], pattern: re.Pattern[str]) -> list[Leaf]:
    return [leaf for leaf in leaves if pattern.fullmatch(PurePosixPath(leaf.path).name)]


class _Audio:
    """Finds the file of a recording's source."""

    def __init__(self, tree: Tree, leaves: list[Leaf]) -> None:
        audio = [leaf for leaf in leaves if leaf.is_audio]
        self._files = Files(tree, audio)
        self._by_stem = {stem(leaf.path): leaf for leaf in audio}

    def of(self, recording: Mapping[str, Any], name: str, manifest: Leaf, where: str) -> Leaf:
        """The file, by its path or, in Shar, by the cut's name. Raises DataError for others."""
        sources = items(recording, "sources", where)
        if len(sources) != 1:
            raise DataError(
                f"{where}: its recording has {len(sources)} sources; write it as one file"
            )
        if recording.get("transforms"):
            raise DataError(f"{where}: its recording is changed by transforms; save it as audio")
        folder, kind = PurePosixPath(manifest.path).parent, value(sources[0], "type", where)
        if kind == "shar":
            path = str(folder / name)
            return self._by_stem.get(path) or Leaf(path, 0, problem=NOT_BELOW_ROOT)
        if kind not in ("file", "url"):
            raise DataError(f"{where}: its recording is a {kind}; save it as a file")
        path = str(value(sources[0], "source", where))
        return self._files.named(where, path, str(folder / path))


def _of_cut(cut: Mapping[str, Any], audio: _Audio, manifest: Leaf, where: str) -> Recording:
    if not isinstance(recording := cut.get("recording"), Mapping):
        kind = "features alone" if "features" in cut else f"{cut.get('type')} of no one recording"
        raise DataError(f"{where}: a cut with {kind}; save cuts that each have a recording")
    name = str(value(cut, "id", where))
    said = _supervision(cut, where)
    start = seconds(cut.get("start") or 0, "start", where)
    length = seconds(value(cut, "duration", where), "duration", where)
    is_whole = start == 0 and length >= seconds(recording.get("duration") or length, "", where)
    return Recording(
        name,
        audio.of(recording, name, manifest, where),
        channel=_channel(cut, recording),
        spans_s=() if is_whole or _is_shar(recording) else ((start, start + length),),
        language=language_code(str(said.get("language") or "")),
        speaker=str(said.get("speaker") or ""),
        session="" if recording.get("id") == name else str(recording.get("id") or ""),
    )


def _supervision(cut: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """What is said of a cut; of several, the first."""
    said = items(cut, "supervisions", where) if cut.get("supervisions") else []
    return said[0] if said and isinstance(said[0], Mapping) else {}


def _channel(cut: Mapping[str, Any], recording: Mapping[str, Any]) -> int | None:
    """The one of the recording's channels that a cut is of; Shar holds no other."""
    there = [c for source in recording.get("sources") or () for c in source.get("channels") or ()]
    is_one_of_several = isinstance(cut.get("channel"), int) and len(there) > 1
    if not is_one_of_several or _is_shar(recording):
        return None
    return there.index(cut["channel"]) if cut["channel"] in there else cut["channel"]


def _is_shar(recording: Mapping[str, Any]) -> bool:
    return any(source.get("type") == "shar" for source in recording.get("sources") or ())
