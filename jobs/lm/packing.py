"""Unit shards become three token streams: which utterances are in each, and where.

In: Parquet shards of units, in shard order, and which split each group of recordings is in
(`jobs.lm.splits`). Out: ``{train,valid,test}.bin`` (little-endian uint16, utterances one after the
other, nothing between them) and ``{split}.idx.parquet`` (id, offset, num_tokens, num_samples).
Where sources are mixed, training's utterances are ordered by source first: a stream each. Same
shards and deal, same bytes.

A corpus of 150k hours is 21 GB of tokens, so no more than one shard and one row group of the index
is ever in memory.
"""

from __future__ import annotations

import hashlib
import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.lm import splits
from jobs.lm.splits import GROUP_COLUMNS, SPLITS, Codes, Deal, SplitName, groups_of, sources_of
from jobs.lm.token_stream import bin_name, index_name
from jobs.unit_shards import UsedRows
from orchestrator.errors import CorruptError
from orchestrator.spec.recipe import Split

RULE = (
    "utterances of a split are concatenated in shard order, then row order; no BOS, no EOS, "
    "no separator; token id = unit id, little-endian uint16; the split of a group (what `by` "
    "names, with its source; a recording that has none of it stands for itself) is its place in "
    "[0, 1): the first 8 bytes of sha256(group) / 2**64; the lowest `valid` share is valid, the "
    "next `test` share is test, the rest is train"
)
BY_RANK = "the shares leave a split empty: groups are dealt out in the order of places instead"
INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("offset", pa.int64()),
        ("num_tokens", pa.int64()),
        ("num_samples", pa.int64()),
    ]
)
_ROWS_PER_GROUP = 65_536
_COLUMNS = ["id", "recording", "units", "num_samples", *GROUP_COLUMNS]


@dataclass
class StreamWriter:
    """One stream being written: the token file, its index, and the counts of both."""

    folder: Path
    name: str
    """Of its files."""
    sizes: Counter[str] = field(
        default_factory=lambda: Counter(num_utterances=0, num_tokens=0, num_samples=0)
    )
    """Of all utterances together."""
    _recordings: array[int] = field(default_factory=lambda: array("Q"))
    """Eight bytes a recording: the names of 150k hours of them would take too much memory."""
    _rows: list[tuple[str, int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tokens = (self.folder / bin_name(self.name)).open("wb")
        self._index_path = self.folder / index_name(self.name)
        self._index = pq.ParquetWriter(self._index_path, INDEX_SCHEMA, compression="zstd")

    def add(self, utterance: str, recording: str, units: np.ndarray, num_samples: int) -> None:
        """Append one utterance."""
        self._tokens.write(units.astype("<u2").tobytes())
        self._rows.append((utterance, self.sizes["num_tokens"], len(units), num_samples))
        self.sizes.update(num_utterances=1, num_tokens=len(units), num_samples=num_samples)
        digest = int.from_bytes(hashlib.sha256(recording.encode()).digest()[:8], "big")
        if not self._recordings or self._recordings[-1] != digest:
            self._recordings.append(digest)
        if len(self._rows) == _ROWS_PER_GROUP:
            self._flush()

    def absorb(self, other: StreamWriter) -> None:
        """Append all of another stream, whose files end with that."""
        other.close()
        self._flush()
        index = pq.ParquetFile(other._index_path)
        for group in range(index.num_row_groups):
            rows = index.read_row_group(group)
            offsets = pc.add(rows["offset"], self.sizes["num_tokens"])
            place = INDEX_SCHEMA.get_field_index("offset")
            self._index.write_table(rows.set_column(place, INDEX_SCHEMA.field(place), offsets))
        with Path(other._tokens.name).open("rb") as tokens:
            shutil.copyfileobj(tokens, self._tokens)
        self.sizes.update(other.sizes)
        self._recordings += other._recordings
        for path in (Path(other._tokens.name), other._index_path):
            path.unlink()

    def close(self) -> None:
        """Write what is left and finish both files."""
        if self._tokens.closed:
            return
        if self._rows or not self.sizes["num_utterances"]:
            self._flush()
        self._tokens.close()
        self._index.close()

    def counts(self) -> dict[str, int]:
        """What is in this stream."""
        return {"num_recordings": len(np.unique(np.array(self._recordings))), **self.sizes}

    def _flush(self) -> None:
        columns = list(zip(*self._rows, strict=True)) or [()] * len(INDEX_SCHEMA)
        arrays = [pa.array(c, f.type) for c, f in zip(columns, INDEX_SCHEMA, strict=True)]
        self._index.write_table(pa.table(arrays, schema=INDEX_SCHEMA))
        self._rows.clear()


class Writers:
    """The streams of all splits: one each, but one of each source for training by source."""

    def __init__(self, folder: Path, sources: Sequence[str]) -> None:
        """``sources``: in their order; empty where training is one stream."""
        self._train = {
            source: StreamWriter(folder, f"train.{n}" if n else "train")
            for n, source in enumerate(sources or [""])
        }
        self._held_out: dict[SplitName, StreamWriter] = {
            "valid": StreamWriter(folder, "valid"),
            "test": StreamWriter(folder, "test"),
        }

    def of(self, code: int, source: str) -> StreamWriter:
        """Where an utterance of a split, by number, and of a source belongs."""
        if held_out := self._held_out.get(SPLITS[code]):
            return held_out
        return self._train[source] if source in self._train else self._train[""]

    def streams(self) -> list[dict[str, Any]]:
        """What training has of each source, before they are one."""
        return [{"source": source, **writer.counts()} for source, writer in self._train.items()]

    def finish(self) -> dict[str, dict[str, int]]:
        """Finish all files; what is in each split."""
        train, *others = self._train.values()
        for other in others:
            train.absorb(other)
        self.close()
        held_out = {str(name): writer.counts() for name, writer in self._held_out.items()}
        return {"train": train.counts(), **held_out}

    def close(self) -> None:
        """Close all files."""
        for writer in (*self._train.values(), *self._held_out.values()):
            writer.close()


def deal_out(shards: Iterable[Path], rows: UsedRows, shares: Split) -> Deal:
    """Which split each group of the shards is in; reads no more of them than it needs.

    Raises DataError for fewer groups than splits.
    """
    tables = (rows.read(shard, ["recording", "units", *GROUP_COLUMNS]) for shard in shards)
    return splits.deal_out(shares, splits.used_groups(tables, shares.by))


def pack_shards(
    shards: Iterable[Path],
    rows: UsedRows,
    folder: Path,
    *,
    shares: Split,
    deal: Deal,
    num_units: int,
    sources: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the three splits of the shards into ``folder``; returns the content of ``pack.json``.

    Utterances without any unit, and of recordings in no split, are left out and counted.
    ``sources``: in which order training has them, where each is a stream of its own. Raises
    CorruptError when a unit is outside the codebook.
    """
    left_out: Counter[str] = Counter()
    with closing(Writers(folder, sources)) as writers:
        for shard in shards:
            table = rows.read(shard, _COLUMNS).combine_chunks()
            codes = deal.codes(groups_of(table, shares.by))
            left_out += _pack_shard(shard, table, codes, writers, num_units)
        streams = {"streams": writers.streams()} if sources else {}
        packed = writers.finish()
    return {
        "dtype": "uint16",
        "num_units": num_units,
        "rule": RULE,
        "shares": {"valid": shares.valid, "test": shares.test},
        "by": shares.by,
        **({"dealt": BY_RANK} if deal.by_rank else {}),
        **(_thinned(shares, left_out["thinned"]) if shares.train_fraction < 1 else {}),
        "num_empty_utterances": left_out["empty"],
        **streams,
        "splits": packed,
    }


def _thinned(shares: Split, num_utterances: int) -> dict[str, Any]:
    """What ``pack.json`` says besides where not all of the training split is used."""
    return {
        "train_fraction": shares.train_fraction,
        "thinned_by": "of train, groups whose place as `train/<group>` is not below it",
        "num_thinned_utterances": num_utterances,
    }


def _pack_shard(
    shard: Path, table: pa.Table, codes: Codes, writers: Writers, num_units: int
) -> Counter[str]:
    """Add a shard's utterances to their streams; how many were left out, and why."""
    if not table.num_rows:  # all of it may be silent or unreadable
        return Counter()
    lists = table["units"].combine_chunks()
    units, ends = lists.flatten().to_numpy(), np.cumsum(lists.value_lengths().to_numpy())
    utterances = zip(
        *(table[name].to_pylist() for name in ("id", "recording", "num_samples")),
        sources_of(table).to_pylist(),
        np.split(units, ends[:-1]),
        codes.tolist(),
        strict=True,
    )
    left_out: Counter[str] = Counter()
    for utterance, recording, num_samples, source, own, code in utterances:
        if not len(own):
            left_out["empty"] += 1
            continue
        if int(own.max()) >= num_units:
            raise CorruptError(
                f"{shard}: {utterance} holds unit {own.max()} of a codebook of {num_units}; "
                "tokenize again"
            )
        if code < 0:
            left_out["thinned"] += 1
        else:
            writers.of(code, source).add(utterance, recording, own, num_samples)
    return left_out
