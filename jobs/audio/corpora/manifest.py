"""A manifest of one's own: ``manifest.{csv,jsonl,json,parquet}`` at the top of the tree.

A row is a recording, or a stretch of one. Known columns, by the names of NeMo, slm_scaling and
minimal_hubert: the path (``audio_filepath``, ``path``, ``audio``), ``offset`` and ``duration`` in
seconds, ``channel`` from 0 on, ``id`` (``fileid``), ``language`` (``lang``), ``speaker``
(``speaker_id``), ``session``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.audio.corpora.recording import Recording, json_lines, language_code, listed, rows, stem
from jobs.audio.trees import Leaf, Tree
from orchestrator.errors import DataError

NAMES = ("manifest.csv", "manifest.jsonl", "manifest.json", "manifest.parquet")
_PATH = ("audio_filepath", "path", "audio")
_ID, _LANGUAGE, _SPEAKER = ("id", "fileid"), ("language", "lang"), ("speaker", "speaker_id")


def recordings(tree: Tree) -> Iterator[Recording]:
    """All rows in order. Raises DataError for one without a path."""
    leaves = {leaf.path: leaf for leaf in tree.leaves()}
    found = [leaves[name] for name in NAMES if name in leaves]
    if len(found) != 1:
        names = ", ".join(leaf.path for leaf in found) or "none"
        raise DataError(f"needs one of {', '.join(NAMES)} at its top, and has {names}")
    (manifest,) = found
    for number, row in enumerate(_rows(tree, manifest), 1):
        where = f"{manifest.path}: row {number}"
        path = str(_first(row, _PATH) or "").removeprefix("./")
        if not path:
            raise DataError(f"{where}: has none of {', '.join(_PATH)}")
        yield _recording(row, listed(leaves, path), where)


def _recording(row: Mapping[str, Any], leaf: Leaf, where: str) -> Recording:
    spans, channel = _spans(row, where), _channel(row, where)
    default = stem(leaf.path) if channel is None else f"{stem(leaf.path)}#{channel}"
    if spans and spans[0][0] > 0:
        default = f"{default}@{spans[0][0]:g}"
    return Recording(
        str(_first(row, _ID) or default),
        leaf,
        channel=channel,
        spans_s=spans,
        language=language_code(str(_first(row, _LANGUAGE) or "")),
        speaker=str(_first(row, _SPEAKER) or ""),
        session=str(row.get("session") or ""),
    )


def _channel(row: Mapping[str, Any], where: str) -> int | None:
    """The channel that a row names."""
    said = _first(row, ("channel",))
    if said is None:
        return None
    try:
        channel = float(said)
        if not (channel >= 0 and channel.is_integer()):
            raise ValueError
    except ValueError:
        raise DataError(f"{where}: channel {said!r}; channels are 0, 1 and so on") from None
    return int(channel)


def _spans(row: Mapping[str, Any], where: str) -> tuple[tuple[float, float], ...]:
    """The stretch that a row names; none where it is the whole file."""
    try:
        start = float(row.get("offset") or 0.0)
        length = float(row.get("duration") or math.inf)
    except ValueError:
        raise DataError(f"{where}: offset and duration are seconds") from None
    if start < 0 or not length > 0:
        raise DataError(f"{where}: offset {start:g} and duration {length:g} are no stretch")
    # A duration alone is what the file is said to have; the file itself knows better.
    return ((start, start + length),) if row.get("offset") else ()


def _rows(tree: Tree, manifest: Leaf) -> Iterator[Mapping[str, Any]]:
    if manifest.path.endswith((".json", ".jsonl")):
        yield from json_lines(tree, manifest)
    elif manifest.path.endswith(".csv"):
        yield from rows(tree, manifest, ",", (), quoted=True)
    else:
        with tree.place(manifest).open() as file:
            try:
                table = pq.ParquetFile(file)
            except pa.ArrowInvalid as error:
                raise DataError(f"{manifest.path}: {error}; fetch it again") from None
            for batch in table.iter_batches():
                yield from batch.to_pylist()


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)
