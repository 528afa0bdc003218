"""Recordings in Parquet: a row each, their bytes in a column, as a hub's data sets keep them.

huggingface.co/docs/datasets, feature ``Audio``: a column of ``struct<bytes, path>``.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.audio.trees import Leaf
from orchestrator.errors import DataError
from orchestrator.ledger.source_files import as_path, files_below

_ID = ("id", "ID", "utt_id", "fileid", "file", "path")
_BYTES, _PATH = "bytes", "path"


class ParquetTree:
    """Rows of all Parquet files below a root; one row group is in memory at a time.

    A row's path is its id where that names an audio file, else the path beside its bytes.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._of: tuple[str, int] | None = None
        self._bytes: pa.Array = pa.array([], pa.binary())

    def leaves(self) -> Iterator[Leaf]:
        """All rows, in the order of files and rows. Raises DataError for what is no such file."""
        yield from (leaf for leaf, _ in self.rows())

    def rows(self) -> Iterator[tuple[Leaf, Mapping[str, Any]]]:
        """The same, each with the row's other columns that are text."""
        for path, _, problem in sorted(files_below(self._root)):
            if path.endswith(".parquet"):
                if problem:
                    raise DataError(f"{self._root}/{path}: {problem}; repair it")
                yield from self._rows(path)

    def open(self, leaf: Leaf) -> BinaryIO:
        """The bytes of a row."""
        with self._file(leaf.archive) as file:
            group, first = _group_of(file, leaf.offset)
            if self._of != (leaf.archive, group):
                column = file.read_row_group(group, [f"{_audio_column(file)}.{_BYTES}"])
                self._bytes = column.column(0).combine_chunks().field(_BYTES)
                self._of = (leaf.archive, group)
        return io.BytesIO(self._bytes[leaf.offset - first].as_py() or b"")

    def _rows(self, path: str) -> Iterator[tuple[Leaf, Mapping[str, Any]]]:
        with self._file(path) as file:
            audio = _audio_column(file)
            texts = [f.name for f in file.schema_arrow if pa.types.is_string(f.type)]
            number = 0
            for batch in file.iter_batches(columns=[f"{audio}.{_PATH}", *texts]):
                for row in batch.to_pylist():
                    about = {name: row[name] for name in texts}
                    name = _name_of(about, (row.get(audio) or {}).get(_PATH))
                    if not name:
                        raise DataError(
                            f"{self._root}/{path}: row {number}: has neither id nor path"
                        )
                    yield Leaf(name, 0, "", path, number), about
                    number += 1

    def _file(self, path: str) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self._root / as_path(path))
        except pa.ArrowInvalid as error:
            raise DataError(f"{self._root}/{path}: {error}; fetch it again") from None


def _audio_column(file: pq.ParquetFile) -> str:
    """The column with bytes. Raises DataError when there is none, or more than one."""
    found = [
        field.name
        for field in file.schema_arrow
        if pa.types.is_struct(field.type) and field.type.get_field_index(_BYTES) >= 0
    ]
    if len(found) != 1:
        names = ", ".join(found) or "none"
        raise DataError(f"needs one column of struct<{_BYTES}, {_PATH}>, and has {names}")
    return str(found[0])


def _name_of(about: Mapping[str, Any], path: str | None) -> str:
    named = next((about[name] for name in _ID if about.get(name)), None)
    if named and Leaf(named, 0).is_audio:
        return str(named)
    return str(path or named or "")


def _group_of(file: pq.ParquetFile, row: int) -> tuple[int, int]:
    """The row group of a row, and the first row of that."""
    sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    ends = np.cumsum(sizes)
    group = int(np.searchsorted(ends, row, side="right"))
    return group, int(ends[group] - sizes[group])
