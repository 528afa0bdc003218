"""Shards of units: the table of utterances that the decode which makes units writes.

A row is an utterance with its units; one that is not used says why in ``left_out``, and a recording
that could not be decoded has a single row, with the reason in ``unreadable``. A recording that was
shared out to several shards may turn out unreadable in one of them: ``quarantine.parquet`` of the
artifact has it, and none of its utterances is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestrator.ledger.storage import Storage
from orchestrator.parquet import read_parquet

Units = npt.NDArray[np.uint16]

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("recording", pa.string()),
        ("units", pa.list_(pa.uint16())),
        ("durations", pa.list_(pa.uint16())),
        ("num_samples", pa.int64()),
        ("start_sample", pa.int64()),
        ("source", pa.string()),
        ("language", pa.string()),
        ("speaker", pa.string()),
        ("session", pa.string()),
        ("left_out", pa.string()),
        ("unreadable", pa.string()),
    ]
)
"""Samples are at 16 kHz. Shards of earlier versions have the first five columns."""
QUARANTINE = "quarantine.parquet"


def shard_path(shard: int, suffix: str = "parquet") -> str:
    """Where a shard lies below its artifact."""
    return f"shards/{shard // 1000:03d}/{shard:06d}.{suffix}"


def shard_paths(units: Iterable[str]) -> list[str]:
    """The shards among an artifact's files, in order."""
    return sorted(path for path in units if path.startswith("shards/"))


def missing_shards(shards: Iterable[int], outs: Sequence[Storage]) -> dict[int, tuple[int, ...]]:
    """For each shard that some output misses, the positions of those outputs."""
    present = [out.list("shards") for out in outs]
    missing = {
        shard: tuple(i for i, paths in enumerate(present) if shard_path(shard) not in paths)
        for shard in shards
    }
    return {shard: which for shard, which in missing.items() if which}


def read_shard(data: bytes) -> pa.Table:
    """All rows of a shard."""
    return read_parquet(data)


def used(table: pa.Table) -> pa.Table:
    """The rows whose units are used."""
    for reason in ("left_out", "unreadable"):
        if reason in table.column_names:
            table = table.filter(pc.is_null(table[reason]))
    return table


class UsedRows:
    """Reads what is used of the shards of an artifact."""

    def __init__(self, unreadable: Iterable[str] = ()) -> None:
        """``unreadable``: recordings of which nothing is used."""
        self._unreadable = pa.array(list(unreadable), pa.string())

    @classmethod
    def of(cls, units: Storage) -> UsedRows:
        """Those of an artifact."""
        if not units.exists(QUARANTINE):  # of an earlier version
            return cls()
        table = read_parquet(units.read_bytes(QUARANTINE), ["id"])
        return cls(table["id"].to_pylist())

    def read(self, shard: Path, columns: Sequence[str]) -> pa.Table:
        """Some columns of a shard, with nulls for those that an earlier version did not write."""
        there = pq.read_schema(shard).names
        reasons = [n for n in ("left_out", "unreadable", "recording") if n not in columns]
        wanted = [name for name in (*columns, *reasons) if name in there]
        table = used(pq.read_table(shard, columns=wanted))
        table = table.filter(pc.invert(pc.is_in(table["recording"], self._unreadable)))
        for name in set(columns) - set(there):
            table = table.append_column(name, pa.nulls(table.num_rows, SCHEMA.field(name).type))
        return table.select(columns)
