"""A manifest of one's own: ``manifest.{csv,jsonl,json,parquet}`` at the top of the tree.

All but Parquet may be packed: ``manifest.jsonl.gz``.

A row is a recording, or a stretch of one. Known columns, by the names of NeMo, slm_scaling and
minimal_hubert: the path (``audio_filepath``, ``path``, ``audio``), ``offset`` and ``duration`` in
seconds, ``channel`` from 0 on, ``id`` (``fileid``), ``language`` (``lang``), ``speaker``
(``speaker_id``), ``session``. A row of NeMo's long form has ``segments``, each a recording with
``start``, ``end`` and ``speaker``: ``<id of the row>/00000`` and so on, in the order of the list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.audio.corpora.recording import NO_SPEECH, Recording, stem
from jobs.audio.languages import language_code
from jobs.audio.lists import Files, items, json_lines, rows, seconds, value
from jobs.audio.trees import Leaf, Tree
from orchestrator.errors import DataError

_TEXT = ("manifest.csv", "manifest.jsonl", "manifest.json")
NAMES = (*_TEXT, "manifest.parquet", *(f"{name}.gz" for name in _TEXT))
_PATH = ("audio_filepath", "path", "audio")
_SEGMENTS = "segments"
_ID, _LANGUAGE, _SPEAKER = ("id", "fileid"), ("language", "lang"), ("speaker", "speaker_id")


def recordings(tree: Tree) -> Iterator[Recording]:
    """All rows in order. Raises DataError for one without a path."""
    files = Files(tree, tree.leaves())
    found = [files[name] for name in NAMES if name in files]
    if len(found) != 1:
        names = ", ".join(leaf.path for leaf in found) or "none"
        raise DataError(f"needs one of {', '.join(NAMES[:4])} at its top, and has {names}")
    (manifest,) = found
    for where, row in _rows(tree, manifest):
        path = _first(row, _PATH)
        if not isinstance(path, str):
            raise DataError(
                f"{where}: has a path in none of {', '.join(_PATH)}; its columns are "
                f"{', '.join(row)}"
            )
        recording = _recording(row, files.named(where, path), where)
        if row.get(_SEGMENTS) in (None, ""):
            yield recording
        else:
            yield from _segments(recording, items(row, _SEGMENTS, where), where)


def _segments(whole: Recording, segments: Sequence[Any], where: str) -> Iterator[Recording]:
    """The stretches of a file that a row lists; times are those of the file."""
    if not segments:
        yield whole._replace(left_out=NO_SPEECH)
    for number, segment in enumerate(segments):
        at = f"{where}: {_SEGMENTS}[{number}]"
        start, end = (seconds(value(segment, name, at), name, at) for name in ("start", "end"))
        yield whole._replace(
            id=f"{whole.id}/{number:05d}",
            spans_s=((start, end),),
            speaker=str(_first(segment, _SPEAKER) or whole.speaker),
            session=whole.session or whole.id,
        )


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
        # What is cut from one file is never torn apart.
        session=str(_first(row, ("session",)) or (stem(leaf.path) if spans else "")),
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
    except (TypeError, ValueError):
        raise DataError(f"{where}: channel {said!r}; channels are 0, 1 and so on") from None
    return int(channel)


def _spans(row: Mapping[str, Any], where: str) -> tuple[tuple[float, float], ...]:
    """The stretch that a row names; none where it says no beginning.

    A duration alone is what the file is said to have; the file itself knows better.
    """
    begins, lasts = (row.get(name) not in (None, "") for name in ("offset", "duration"))
    start = seconds(row["offset"], "offset", where) if begins else 0.0
    length = seconds(row["duration"], "duration", where) if lasts else math.inf
    if not 0 <= start < math.inf or not length > 0:
        raise DataError(f"{where}: offset {start:g} and duration {length:g} are no stretch")
    is_whole = not begins or (start == 0 and not lasts)
    return () if is_whole else ((start, start + length),)


def _rows(tree: Tree, manifest: Leaf) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where each is, and the rows."""
    kind = manifest.path.removesuffix(".gz")
    if kind.endswith((".json", ".jsonl")):
        yield from json_lines(tree, manifest)
    elif kind.endswith(".csv"):
        for where, row in rows(tree, manifest, ",", (), quoted=True):
            yield where, {name.lower(): said for name, said in row.items()}
    else:
        yield from _rows_of_parquet(tree, manifest)


def _rows_of_parquet(tree: Tree, manifest: Leaf) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with tree.place(manifest).open() as file:
        try:
            table = pq.ParquetFile(file)
        except pa.ArrowInvalid as error:
            raise DataError(f"{manifest.path}: {error}; fetch it again") from None
        batches = table.iter_batches(use_threads=False)  # see orchestrator/parquet.py
        all_rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(all_rows, 1):
            yield f"{manifest.path}: row {number}", row


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """What a row says under the first of some names; pandas writes NaN where it says nothing."""
    said = (row.get(name) for name in names)
    return next((found for found in said if found not in (None, "") and found == found), None)
