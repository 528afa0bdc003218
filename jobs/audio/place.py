"""Where the bytes of a recording are: a file, a member of a tar, a row of a Parquet file.

The file may lie in a bucket.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.audio.slices import Slice
from orchestrator.errors import DataError
from orchestrator.ledger.bucket_path import BucketPath

BYTES, PATH = "bytes", "path"
"""Fields of a column of audio, as a hub's data sets have them."""


class Place(NamedTuple):
    """Bytes that any process of a node can open."""

    file: Path | BucketPath
    name: str
    """What the corpus calls it; its suffix says what it is where the bytes do not."""
    offset: int = 0
    """Where it begins in the file, in bytes."""
    size: int | None = None
    """How many bytes it has; None for all."""
    row: int | None = None
    """Which row of a Parquet file it is."""

    @classmethod
    def of(cls, path: Path | BucketPath) -> Place:
        """A whole file."""
        return cls(path, PurePosixPath(str(path)).name)

    @property
    def suffix(self) -> str:
        """Of its name, lower case."""
        return PurePosixPath(self.name).suffix.lower()

    def __str__(self) -> str:
        is_whole = self.size is None and self.row is None
        return str(self.file) if is_whole else f"{self.file}: {self.name}"

    def num_bytes(self) -> int:
        """Its size. Raises OSError."""
        if self.row is not None:
            with self.open() as file:
                return file.seek(0, io.SEEK_END)
        if self.size is not None:
            return self.size
        return self.file.stat().st_size if isinstance(self.file, Path) else self.file.size()

    def open(self, buffering: int = -1) -> BinaryIO:
        """Its bytes. Raises OSError, DataError for a Parquet file that is none."""
        if self.row is not None:
            return io.BytesIO(_row(self.file, self.row))
        if isinstance(self.file, BucketPath):
            return self.file.stretch(self.offset, self.size, buffering)
        file = self.file.open("rb", buffering)
        if self.size is None:
            return file
        own = _Member(file, self.offset, self.size)
        return io.BufferedReader(own, max(buffering, io.DEFAULT_BUFFER_SIZE))


class _Member(Slice):
    """A stretch of a file that is closed with it."""

    def close(self) -> None:
        """Close both."""
        self._file.close()
        super().close()


def open_parquet(path: Path | BucketPath) -> pq.ParquetFile:
    """A Parquet file. Raises OSError, DataError when it is none."""
    try:
        return pq.ParquetFile(path if isinstance(path, Path) else path.open())
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: {error}; fetch it again") from None


def audio_column(file: pq.ParquetFile, where: str) -> str:
    """The column with bytes. Raises DataError when there is none, or more than one."""
    found = [
        str(field.name)
        for field in file.schema_arrow
        if pa.types.is_struct(field.type) and field.type.get_field_index(BYTES) >= 0
    ]
    if len(found) != 1:
        names = ", ".join(found) or "none"
        raise DataError(
            f"{where}: needs one column of struct<{BYTES}, {PATH}>, and has {names}; write it "
            "again with the audio in one"
        )
    return found[0]


def _row(path: Path | BucketPath, row: int) -> bytes:
    """The bytes of a row. Raises OSError, DataError where what was read is damaged."""
    try:
        ends = _row_group_ends(path)
        group = int(np.searchsorted(ends, row, side="right"))
        first = int(ends[group - 1]) if group else 0
        return bytes(_row_group(path, group)[row - first].as_py() or b"")
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and not _is_of_parquet(path, error):
            raise
        words = str(error).splitlines()[0]
        raise DataError(f"{path}: row {row}: is damaged ({words}); fetch it again") from None


def _is_of_parquet(path: Path | BucketPath, error: OSError) -> bool:
    """Whether it is what Arrow says of bytes that it could read; a system's error has a number."""
    return isinstance(path, Path) and type(error) is OSError and error.errno is None


@lru_cache(maxsize=16)
def _row_group_ends(path: Path | BucketPath) -> tuple[int, ...]:
    """The number of rows up to the end of each row group."""
    with open_parquet(path) as file:
        sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    return tuple(int(end) for end in np.cumsum(sizes))


@lru_cache(maxsize=1)
def _row_group(path: Path | BucketPath, group: int) -> pa.Array:
    """The bytes of a row group's recordings, as its neighbours are mostly read together."""
    with open_parquet(path) as file:
        table = file.read_row_group(
            group, [f"{audio_column(file, str(path))}.{BYTES}"], use_threads=False
        )
    return table.column(0).combine_chunks().field(BYTES)
