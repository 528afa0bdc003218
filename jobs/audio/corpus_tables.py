"""The tables of a corpus artifact: recordings, where their bytes are, and what a shard is.

``recordings/000017.parquet``
    A row per recording that is wanted, in the order of sources and ids; the same in any container.
``shards.parquet``
    Where each shard begins: the number of a row and of a window of it; last, where they end.
``left_out.parquet``, ``quarantine.parquet``
    Recordings that are not wanted, and that cannot be opened, with the reason.
``places/<digest>/000017.parquet``
    Where the bytes of the rows are below the roots of one cluster. Another cluster, to which the
    artifact comes with its store, makes its own: these are in no manifest.

Tables have pieces of ``PIECE_ROWS``, written and read one by one: 150,000 hours have millions of
recordings.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.audio import windows
from jobs.audio.mapped_tables import mapped
from jobs.audio.trees import Leaf
from orchestrator.errors import AlreadyExistsError
from orchestrator.ledger.storage import Storage
from orchestrator.parquet import read_parquet
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Windows

PIECE_ROWS = 1 << 16
RECORDINGS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("channel", pa.int64()),
        ("spans_s", pa.list_(pa.list_(pa.float64(), 2))),
        ("language", pa.string()),
        ("speaker", pa.string()),
        ("session", pa.string()),
        ("header_samples", pa.int64()),
    ]
)
"""``channel``: the one that is heard, counted from 0; null where `Root.channels` says which.

``header_samples``: at 16 kHz, as the file's header says, or what its size lets expect."""
PLACES_SCHEMA = pa.schema(
    [("path", pa.string()), ("size", pa.int64()), ("archive", pa.string()), ("offset", pa.int64())]
)
SHARDS_SCHEMA = pa.schema([("row", pa.int64()), ("window", pa.int64())])
SAMPLES_SCHEMA = pa.schema(
    [
        *((n, pa.string()) for n in ("id", "source", "speaker", "session")),
        ("num_samples", pa.int64()),
    ]
)
"""At 16 kHz, as far as they are expected to be used."""
LEFT_OUT_SCHEMA = pa.schema([(n, pa.string()) for n in ("id", "source", "language", "reason")])
QUARANTINE_SCHEMA = pa.schema([(n, pa.string()) for n in ("id", "source", "reason")])
PLACES = "places"


class Row(NamedTuple):
    """One recording."""

    number: int
    """Of its row."""
    id: str
    """Source and the corpus' own id: unique, the same on every cluster."""
    source: str
    channel: int | None
    """The one that is heard, counted from 0; None where its `Root.channels` says which."""
    spans_s: tuple[tuple[float, float], ...]
    language: str
    speaker: str
    session: str
    header_samples: int
    leaf: Leaf
    """Where its bytes are, below the source's root."""

    def stretches(self, of: Windows) -> list[windows.Stretch]:
        """What it is cut from."""
        return windows.stretches(self.spans_s, of)


class Part(NamedTuple):
    """The windows of a recording that are in one shard."""

    row: Row
    first: int
    end: int | None
    """None for all windows from the first on, however many there are."""


class ShardRows(NamedTuple):
    """What a shard holds, as it is sent to whoever reads it: quickly packed, unpacked there."""

    rows: bytes
    first_row: int
    first_window: int
    end_window: int
    """Up to which window of the last row; 0 for all of it."""

    def parts(self) -> list[Part]:
        """Its parts, in order."""
        rows = list(_rows(self.first_row, pa.ipc.open_stream(self.rows).read_all()))
        firsts = [self.first_window, *[0] * (len(rows) - 1)]
        ends = [*[None] * (len(rows) - 1), self.end_window or None]
        return [Part(*part) for part in zip(rows, firsts, ends, strict=True)]


def packed(table: pa.Table) -> bytes:
    """A table, or a slice of one, as Arrow streams it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _rows(first: int, table: pa.Table) -> Iterator[Row]:
    return (_row(number, about) for number, about in enumerate(table.to_pylist(), start=first))


def piece_path(table: str, number: int) -> str:
    """Where a piece of a table is."""
    return f"{table}/{number:06d}.parquet"


def pieces_of(table: pa.Table) -> Iterator[pa.Table]:
    """The pieces of a table, in order; at least one."""
    for start in range(0, max(table.num_rows, 1), PIECE_ROWS):
        yield table.slice(start, PIECE_ROWS)


def create_table(out: Storage, path: str, table: pa.Table) -> None:
    """Create a table; one already there was written from the same audio by an earlier attempt."""
    buffer = io.BytesIO()
    pq.write_table(table.combine_chunks(), buffer, compression="zstd")
    try:
        out.create(path, buffer.getvalue())
    except AlreadyExistsError:
        return


def read_table(storage: Storage, path: str) -> pa.Table:
    """A table. Raises FileNotFoundError."""
    return read_parquet(storage.read_bytes(path))


class Expected(NamedTuple):
    """What recordings have by their headers."""

    samples: npt.NDArray[np.int64]
    """That are used of each, at 16 kHz."""
    num_windows: npt.NDArray[np.int64]

    @classmethod
    def of(
        cls, spans_s: pa.ChunkedArray, lengths: npt.NDArray[np.int64], windows_: Windows
    ) -> Expected:
        """``lengths``: of the files. Those without spans, mostly all, take no loop."""
        most = windows.max_samples(windows_)
        samples, num_windows = lengths.copy(), np.maximum(-(-lengths // most), 1)
        cut_already = np.flatnonzero(pc.list_value_length(spans_s).to_numpy())
        for row in cut_already.tolist():
            stretches = windows.stretches(spans_s[row].as_py(), windows_)
            in_file = int(lengths[row])
            ends = (in_file if s.end is None else s.end for s in stretches)
            used = (max(end - s.start, 0) for s, end in zip(stretches, ends, strict=True))
            samples[row] = sum(used)
            num_windows[row] = windows.count(stretches, in_file, windows_)
        return cls(samples, num_windows)


def share_out(
    samples: npt.NDArray[np.int64], num_windows: npt.NDArray[np.int64], shard_hours: float
) -> pa.Table:
    """Where shards begin: neighbours with equal audio, to within a window; none is empty.

    Neighbours stay together so that the windows of one long file are decoded together.
    """
    ends, windows_end = np.cumsum(samples), np.cumsum(num_windows)
    total, most = int(ends[-1]), int(windows_end[-1])
    count = min(most, max(ceil(total / (shard_hours * 3600 * SAMPLE_RATE_HZ)), 1))
    starts = np.array([n * total // count for n in range(count)])  # exact beyond 64 bits
    row = np.minimum(np.searchsorted(ends, starts, side="right"), len(ends) - 1)
    passed = (starts - (ends[row] - samples[row])) / np.maximum(samples[row], 1)
    window = windows_end[row] - num_windows[row] + np.rint(passed * num_windows[row])
    # Over all windows, where each shard begins; those that would be empty fall together.
    first = np.unique(np.concatenate([[0], window.astype(np.int64)]))
    first = np.append(first[first < most], most)
    row = np.searchsorted(windows_end, first, side="right")
    before = np.where(row > 0, windows_end[np.maximum(row - 1, 0)], 0)
    return pa.table([row, first - before], schema=SHARDS_SCHEMA)


class CorpusTables:
    """The tables of a corpus, for whoever reads its audio; two pieces are in memory at a time."""

    def __init__(self, corpus: Storage, places: str) -> None:
        """``places``: the table of places that holds on this cluster."""
        self._corpus, self.places = corpus, places
        shards = read_table(corpus, "shards.parquet")
        self._first_row = shards["row"].to_numpy()
        self._first_window = shards["window"].to_numpy()
        self._piece = lru_cache(maxsize=2)(self._read_piece)

    @property
    def num_rows(self) -> int:
        """How many recordings there are."""
        return int(self._first_row[-1])

    @property
    def num_shards(self) -> int:
        """How many shards they are shared out to."""
        return len(self._first_row) - 1

    def shard(self, number: int) -> ShardRows:
        """What a shard holds."""
        first, end = (int(n) for n in self._first_row[number : number + 2])
        first_window, end_window = (int(n) for n in self._first_window[number : number + 2])
        rows = self._slice(first, end + (end_window > 0))
        return ShardRows(packed(rows), first, first_window, end_window)

    def rows(self, first: int, end: int) -> Iterator[Row]:
        """The rows of these numbers."""
        yield from _rows(first, self._slice(first, end))

    def table(self) -> pa.Table:
        """All rows, with their places."""
        return self._slice(0, self.num_rows)

    def _slice(self, first: int, end: int) -> pa.Table:
        pieces = []
        for piece in range(first // PIECE_ROWS, ceil(end / PIECE_ROWS)):
            start = max(first - piece * PIECE_ROWS, 0)
            pieces.append(self._piece(piece).slice(start, end - piece * PIECE_ROWS - start))
        return pa.concat_tables(pieces)

    def samples_by_recording(self, of: Windows) -> pa.Table:
        """All recordings, with the ``num_samples`` at 16 kHz that are expected to be used."""
        return mapped(SAMPLES_SCHEMA, self._samples_by_recording(of))

    def _samples_by_recording(self, of: Windows) -> Iterator[pa.RecordBatch]:
        for piece, expected in self.expected(of):
            about = piece.select(SAMPLES_SCHEMA.names[:-1])
            with_samples = about.append_column("num_samples", pa.array(expected.samples))
            yield from with_samples.to_batches()

    def expected(self, of: Windows) -> Iterator[tuple[pa.Table, Expected]]:
        """Each piece of the recordings, and what it has by headers."""
        for piece in range(ceil(self.num_rows / PIECE_ROWS)):
            table = read_table(self._corpus, piece_path("recordings", piece))
            lengths = table["header_samples"].to_numpy()
            yield table, Expected.of(table["spans_s"], lengths, of)

    def at(self, numbers: Sequence[int]) -> Iterator[Row]:
        """The rows of these numbers, which ascend."""
        for piece, own in itertools.groupby(numbers, lambda number: number // PIECE_ROWS):
            wanted = sorted(set(own))
            table = self._piece(piece).take([n % PIECE_ROWS for n in wanted])
            yield from map(_row, wanted, table.to_pylist())

    def _read_piece(self, piece: int) -> pa.Table:
        table = read_table(self._corpus, piece_path("recordings", piece))
        places = read_table(self._corpus, piece_path(self.places, piece))
        for name in PLACES_SCHEMA.names:
            table = table.append_column(name, places[name])
        return table


def leaf_of(row: Mapping[str, Any]) -> Leaf:
    """Where the bytes of a recording are, by its columns of ``places``."""
    return Leaf(row["path"], row["size"], "", row["archive"], row["offset"])


def _row(number: int, about: dict[str, Any]) -> Row:
    names = ("id", "source", "channel", "language", "speaker", "session", "header_samples")
    spans_s = tuple((start, end) for start, end in about["spans_s"])
    return Row(
        number=number, spans_s=spans_s, leaf=leaf_of(about), **{name: about[name] for name in names}
    )
