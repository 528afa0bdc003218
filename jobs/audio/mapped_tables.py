"""Tables that are larger than memory: written to a file of this node, looked at where they lie.

In: record batches. Out: an Arrow table whose bytes are the file's, mapped: the system reads what is
looked at and drops it where memory is short. The files are in the folder of ``TMPDIR``, and have no
name there, so that nothing is left of a process that is killed.
"""

from __future__ import annotations

import itertools
import mmap
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.disk import writing

_Row = TypeVar("_Row")

BATCH_ROWS = 1 << 16
"""Rows that are in memory at a time; a multiple of what Parquet writes at a time."""


class TableFile:
    """A table while it is written."""

    def __init__(self, schema: pa.Schema) -> None:
        self._folder = Path(tempfile.gettempdir())
        with self._writing():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (open until `close`)
            self._batches = pa.ipc.new_file(self._file, schema)

    def add(self, rows: pa.RecordBatch) -> None:
        """Write some rows. Raises RunFailedError with the folder when its disk fails."""
        with self._writing():
            self._batches.write(rows)

    def table(self) -> pa.Table:
        """All of it, in the batches that were written. Nothing can be added any more."""
        with self._writing():
            self._batches.close()
            self._file.flush()
            mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).read_all()

    def close(self) -> None:
        """Close the file; tables that lie in it stay."""
        with suppress(OSError):  # what a full disk has not taken is of no table
            self._file.close()

    def _writing(self) -> AbstractContextManager[None]:
        return writing(self._folder, "TMPDIR")


def mapped(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """A table of batches, each of which is forgotten when it is written."""
    with closing(TableFile(schema)) as file:
        for batch in batches:
            file.add(batch)
        return file.table()


class SortedRows:
    """Rows that come in any order, to be read in another."""

    def __init__(self, schema: pa.Schema, by: Sequence[str] = ("id",)) -> None:
        """``by``: the columns that tell the order, the first above all."""
        self._schema, self._runs = schema, TableFile(schema)
        self._keys = [(name, "ascending") for name in by]

    def add(self, rows: pa.RecordBatch) -> None:
        """Take in some; they are sorted in memory."""
        if rows.num_rows:
            self._runs.add(rows.sort_by(self._keys))

    def table(self) -> pa.Table:
        """All of them in order; nothing can be added any more."""
        runs = self._runs.table()
        if len(batches := runs.to_batches()) <= 1:
            return runs
        order = pc.sort_indices(runs, self._keys).to_numpy()
        merged = _merged(batches, order)
        return mapped(self._schema, (batch.sort_by(self._keys) for batch in merged))

    def close(self) -> None:
        """Forget what was taken in; a table of it stays."""
        self._runs.close()


def _merged(
    runs: Sequence[pa.RecordBatch], order: npt.NDArray[np.uint64]
) -> Iterator[pa.RecordBatch]:
    """Which rows come next in ``order``, some at a time: of each run, what comes next in it."""
    ends = np.cumsum([run.num_rows for run in runs])
    taken = np.zeros(len(runs), np.int64)
    for start in range(0, len(order), BATCH_ROWS):
        run_of = np.searchsorted(ends, order[start : start + BATCH_ROWS], side="right")
        counts = np.bincount(run_of, minlength=len(runs))
        taking = zip(runs, taken.tolist(), counts.tolist(), strict=True)
        parts = [run.slice(first, count) for run, first, count in taking if count]
        taken += counts
        (batch,) = pa.Table.from_batches(parts).combine_chunks().to_batches()
        yield batch


def chunked(rows: Iterable[_Row], size: int = BATCH_ROWS) -> Iterator[list[_Row]]:
    """Runs of at most ``size``."""
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
