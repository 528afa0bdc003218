"""Parquet files that are in memory, read by the thread that asks.

Arrow's own threads may outlive a read that goes through a Python object. One that lets go of it
while the interpreter ends takes the whole process down, exit code and all (apache/arrow#50482).
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """A table, or some of its columns. Raises pyarrow's ArrowInvalid for what is none."""
    file = pq.ParquetFile(pa.BufferReader(data))
    return file.read(columns=None if columns is None else list(columns), use_threads=False)
