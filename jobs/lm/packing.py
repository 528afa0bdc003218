"""Unit shards become three token streams: which recording is in which split, and where.

In: Parquet shards of (id, recording, units, num_samples), in shard order. Out:
``{train,valid,test}.bin`` (little-endian uint16, utterances one after the other, nothing between
them) and ``{split}.idx.parquet`` (id, offset, num_tokens, num_samples). Same shards and shares,
same bytes.

A corpus of 150k hours is 21 GB of tokens, so no more than one shard and one row group of the index
is ever in memory.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.lm.token_stream import bin_name, index_name
from jobs.unit_shards import UsedRows
from orchestrator.errors import CorruptError
from orchestrator.spec.recipe import Split

SplitName = Literal["train", "valid", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")
RULE = (
    "utterances of a split are concatenated in shard order, then row order; no BOS, no EOS, "
    "no separator; token id = unit id, little-endian uint16; a recording's split is its place "
    "in [0, 1): the first 8 bytes of sha256(recording) / 2**64; the lowest `valid` share is "
    "valid, the next `test` share is test, the rest is train"
)
INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("offset", pa.int64()),
        ("num_tokens", pa.int64()),
        ("num_samples", pa.int64()),
    ]
)
_ROWS_PER_GROUP = 65_536
_COLUMNS = ["id", "recording", "units", "num_samples"]


def place_of(recording: str) -> float:
    """A whole recording's place in [0, 1); pure, so that adding data never moves a recording."""
    return int.from_bytes(hashlib.sha256(recording.encode()).digest()[:8], "big") / 2**64


def split_of(recording: str, shares: Split) -> SplitName | None:
    """The split of a whole recording, by its place; None for one that ``train_fraction`` leaves."""
    place = place_of(recording)
    if place < shares.valid:
        return "valid"
    if place < shares.valid + shares.test:
        return "test"
    # Salted: the places of what is left for training begin where the other shares end.
    is_in = shares.train_fraction == 1 or place_of(f"train/{recording}") < shares.train_fraction
    return "train" if is_in else None


@dataclass
class SplitWriter:
    """One split being written: the token file, its index, and the counts of both."""

    name: SplitName
    folder: Path
    sizes: Counter[str] = field(
        default_factory=lambda: Counter(num_utterances=0, num_tokens=0, num_samples=0)
    )
    """Of all utterances together."""
    recordings: set[bytes] = field(default_factory=set)
    _rows: list[tuple[str, int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tokens = (self.folder / bin_name(self.name)).open("wb")
        index = self.folder / index_name(self.name)
        self._index = pq.ParquetWriter(index, INDEX_SCHEMA, compression="zstd")

    def add(self, utterance: str, recording: str, units: np.ndarray, num_samples: int) -> None:
        """Append one utterance."""
        self._tokens.write(units.astype("<u2").tobytes())
        self._rows.append((utterance, self.sizes["num_tokens"], len(units), num_samples))
        self.sizes.update(num_utterances=1, num_tokens=len(units), num_samples=num_samples)
        # Eight bytes a recording: the names of 150k hours of them would take too much memory.
        self.recordings.add(hashlib.sha256(recording.encode()).digest()[:8])
        if len(self._rows) == _ROWS_PER_GROUP:
            self._flush()

    def close(self) -> None:
        """Write what is left and finish both files."""
        if self._rows or not self.sizes["num_utterances"]:
            self._flush()
        self._tokens.close()
        self._index.close()

    def counts(self) -> dict[str, int]:
        """What is in this split."""
        return {"num_recordings": len(self.recordings), **self.sizes}

    def _flush(self) -> None:
        columns = list(zip(*self._rows, strict=True)) or [()] * len(INDEX_SCHEMA)
        arrays = [pa.array(c, f.type) for c, f in zip(columns, INDEX_SCHEMA, strict=True)]
        self._index.write_table(pa.table(arrays, schema=INDEX_SCHEMA))
        self._rows.clear()


def pack_shards(
    shards: Iterable[Path], rows: UsedRows, folder: Path, *, shares: Split, num_units: int
) -> dict[str, Any]:
    """Write the three splits of the shards into ``folder``; returns the content of ``pack.json``.

    Utterances without any unit, and of recordings in no split, are left out and counted. Raises
    CorruptError when a unit is outside the codebook.
    """
    writers = {name: SplitWriter(name, folder) for name in SPLITS}
    try:
        left_out = sum(
            (_pack_shard(s, rows, writers, shares, num_units) for s in shards), Counter()
        )
    finally:
        for writer in writers.values():
            writer.close()
    return {
        "dtype": "uint16",
        "num_units": num_units,
        "rule": RULE,
        "shares": {"valid": shares.valid, "test": shares.test},
        **(_thinned(shares, left_out["thinned"]) if shares.train_fraction < 1 else {}),
        "num_empty_utterances": left_out["empty"],
        "splits": {name: writer.counts() for name, writer in writers.items()},
    }


def _thinned(shares: Split, num_utterances: int) -> dict[str, Any]:
    """What ``pack.json`` says besides where not all of the training split is used."""
    return {
        "train_fraction": shares.train_fraction,
        "thinned_by": "of train, recordings whose place as `train/<recording>` is not below it",
        "num_thinned_utterances": num_utterances,
    }


def _pack_shard(
    shard: Path,
    rows: UsedRows,
    writers: dict[SplitName, SplitWriter],
    shares: Split,
    num_units: int,
) -> Counter[str]:
    """Add a shard's utterances to their splits; how many were left out, and why."""
    table = rows.read(shard, _COLUMNS).combine_chunks()
    lists = table["units"].combine_chunks()
    units, ends = lists.flatten().to_numpy(), np.cumsum(lists.value_lengths().to_numpy())
    utterances = zip(
        table["id"].to_pylist(),
        table["recording"].to_pylist(),
        np.split(units, ends[:-1]),
        table["num_samples"].to_pylist(),
        strict=True,
    )
    left_out: Counter[str] = Counter()
    for utterance, recording, own, num_samples in utterances:
        if not len(own):
            left_out["empty"] += 1
            continue
        if int(own.max()) >= num_units:
            raise CorruptError(
                f"{shard}: {utterance} holds unit {own.max()} of a codebook of {num_units}; "
                "tokenize again"
            )
        if split := split_of(recording, shares):
            writers[split].add(utterance, recording, own, num_samples)
        else:
            left_out["thinned"] += 1
    return left_out
