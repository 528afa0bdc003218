"""The forms in which other trainers read units: of each split a file or two, written row by row.

``parquet``
    ``train.parquet``: id, recording, units, durations, num_samples.
``slamkit``
    ``train.jsonl``, as its ``prepare_tokens`` and its training read it: ``file_name``, ``units``,
    ``duration``, ``audio_repr`` (``<Un17><Un5>``); slp-rl/slamkit, ``cli/extract_features.py``.
``fairseq``
    ``train.tsv`` (a root, then name and samples at 16 kHz), ``train.km`` (a label a frame, a line
    an utterance) and ``dict.km.txt``; fairseq, ``examples/hubert``.
``npy``
    ``train.npy`` (uint16, all units one after the other), ``train.offsets.npy`` (int64, where each
    utterance begins, and the end of the last) and ``train.ids.txt``; both arrays can be mapped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.unit_shards import SCHEMA, Units
from orchestrator.errors import RequestError

_ROWS_PER_GROUP = 8192
_SCHEMA = pa.schema([*SCHEMA][:5])


@dataclass(frozen=True, kw_only=True)
class UtteranceUnits:
    """One utterance: L units, each with its duration."""

    id: str
    recording: str
    units_L: Units
    durations_L: Units
    """In frames of the encoder; all ones where runs of a unit were kept."""
    num_samples: int
    """At 16 kHz."""


class SplitFiles(Protocol):
    """The files of one split while they are written."""

    def add(self, utterance: UtteranceUnits) -> None:
        """Append one utterance."""

    def close(self) -> None:
        """Finish the files."""


def _as_line(name: str) -> str:
    """A name that is a line, or a column of one, of a file. Raises RequestError."""
    if name.splitlines() != [name] or "\t" in name:
        raise RequestError(f"{name!r}: no name for a line of text; export as parquet or slamkit")
    return name


class ParquetFiles:
    """One Parquet file a split."""

    def __init__(self, folder: Path, split: str, num_units: int) -> None:  # noqa: ARG002 (of all formats)
        self._writer = pq.ParquetWriter(folder / f"{split}.parquet", _SCHEMA, compression="zstd")
        self._rows: list[UtteranceUnits] = []

    def add(self, utterance: UtteranceUnits) -> None:
        """Append one utterance."""
        self._rows.append(utterance)
        if len(self._rows) == _ROWS_PER_GROUP:
            self._flush()

    def close(self) -> None:
        """Finish the file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        columns = {
            "id": [row.id for row in self._rows],
            "recording": [row.recording for row in self._rows],
            "units": [row.units_L for row in self._rows],
            "durations": [row.durations_L for row in self._rows],
            "num_samples": [row.num_samples for row in self._rows],
        }
        self._writer.write_table(pa.table(columns, schema=_SCHEMA))
        self._rows.clear()


class SlamkitFiles:
    """One file of JSON lines a split."""

    def __init__(self, folder: Path, split: str, num_units: int) -> None:  # noqa: ARG002 (of all formats)
        self._file = (folder / f"{split}.jsonl").open("w")

    def add(self, utterance: UtteranceUnits) -> None:
        """Append one utterance."""
        units = utterance.units_L.tolist()
        row = {
            "file_name": utterance.id,
            "units": units,
            "duration": utterance.durations_L.tolist(),
            "audio_repr": "".join(f"<Un{unit}>" for unit in units),
        }
        self._file.write(f"{json.dumps(row)}\n")

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


class FairseqFiles:
    """A manifest and a label file a split, and the labels' dictionary."""

    def __init__(self, folder: Path, split: str, num_units: int) -> None:
        labels = "".join(f"{unit} 1\n" for unit in range(num_units))
        (folder / "dict.km.txt").write_text(labels)
        self._manifest = (folder / f"{split}.tsv").open("w")
        self._manifest.write(".\n")
        self._labels = (folder / f"{split}.km").open("w")

    def add(self, utterance: UtteranceUnits) -> None:
        """Append one utterance."""
        frames = np.repeat(utterance.units_L, utterance.durations_L)
        self._manifest.write(f"{_as_line(utterance.id)}\t{utterance.num_samples}\n")
        self._labels.write(f"{' '.join(map(str, frames.tolist()))}\n")

    def close(self) -> None:
        """Finish the files."""
        self._manifest.close()
        self._labels.close()


class NpyFiles:
    """Two arrays and a list of names a split."""

    def __init__(self, folder: Path, split: str, num_units: int) -> None:  # noqa: ARG002 (of all formats)
        self._units = _GrowingArray(folder / f"{split}.npy", np.dtype("<u2"))
        self._offsets = _GrowingArray(folder / f"{split}.offsets.npy", np.dtype("<i8"))
        self._offsets.append([0])
        self._ids = (folder / f"{split}.ids.txt").open("w")

    def add(self, utterance: UtteranceUnits) -> None:
        """Append one utterance."""
        self._units.append(utterance.units_L)
        self._offsets.append([self._units.length])
        self._ids.write(f"{_as_line(utterance.id)}\n")

    def close(self) -> None:
        """Finish the files."""
        self._units.close()
        self._offsets.close()
        self._ids.close()


class _GrowingArray:
    """A one-dimensional ``.npy`` file, its length written when it is known.

    NumPy leaves room in the header for a first axis that grows, so that its size stays.
    """

    def __init__(self, path: Path, dtype: np.dtype[np.generic]) -> None:
        self.length = 0
        self._dtype = dtype
        self._file: BinaryIO = path.open("wb")
        self._write_header()

    def append(self, values: Units | Sequence[int]) -> None:
        """Write some values behind the others."""
        array = np.asarray(values, self._dtype)
        self._file.write(array.tobytes())
        self.length += len(array)

    def close(self) -> None:
        """Write the length and close the file."""
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        about = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, about)


FORMATS: dict[str, type[ParquetFiles | SlamkitFiles | FairseqFiles | NpyFiles]] = {
    "parquet": ParquetFiles,
    "slamkit": SlamkitFiles,
    "fairseq": FairseqFiles,
    "npy": NpyFiles,
}
