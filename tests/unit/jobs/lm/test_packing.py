from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.lm.packing import SPLITS, pack_shards, split_of
from jobs.pack import check_splits
from jobs.unit_shards import UsedRows
from orchestrator.errors import CorruptError, DataError
from orchestrator.spec.recipe import Split

SHARES = Split(valid=0.2, test=0.2)
PINNED = ["train", "train", "train", "train", "train", "test", "valid", "train"]


def write_shards(
    folder: Path, num_shards: int = 3, rows: int = 20, num_units: int = 50
) -> list[Path]:
    rng, paths = np.random.default_rng(0), []
    for shard in range(num_shards):
        units = [rng.integers(0, num_units, n).astype(np.uint16) for n in rng.integers(1, 9, rows)]
        table = pa.table(
            {
                "id": [f"u{shard}-{row}" for row in range(rows)],
                "recording": [f"r{shard}-{row // 2}" for row in range(rows)],
                "units": pa.array(units, pa.list_(pa.uint16())),
                "durations": pa.array(units, pa.list_(pa.uint16())),
                "num_samples": pa.array([320 * len(u) for u in units], pa.int64()),
            }
        )
        paths.append(folder / f"{shard:06d}.parquet")
        pq.write_table(table, paths[-1])
    return paths


def pack(shards: list[Path], folder: Path) -> dict[str, object]:
    folder.mkdir()
    return pack_shards(shards, UsedRows(), folder, shares=SHARES, num_units=50)


def test_nothing_is_lost_and_the_index_finds_it(tmp_path: Path) -> None:
    shards = write_shards(tmp_path)
    facts = pack(shards, tmp_path / "out")
    found = {}
    for split in SPLITS:
        tokens = np.fromfile(tmp_path / "out" / f"{split}.bin", "<u2")
        index = pq.read_table(tmp_path / "out" / f"{split}.idx.parquet").to_pylist()
        assert (
            sum(row["num_tokens"] for row in index)
            == len(tokens)
            == facts["splits"][split]["num_tokens"]
        )
        for row in index:
            found[row["id"]] = tokens[row["offset"] : row["offset"] + row["num_tokens"]].tolist()
            assert row["num_samples"] == 320 * row["num_tokens"]
    assert found == {
        row["id"]: row["units"] for shard in shards for row in pq.read_table(shard).to_pylist()
    }


def test_utterances_keep_shard_order(tmp_path: Path) -> None:
    shards = write_shards(tmp_path)
    pack(shards, tmp_path / "out")
    everything = [row["id"] for shard in shards for row in pq.read_table(shard).to_pylist()]
    index = pq.read_table(tmp_path / "out" / "train.idx.parquet")["id"].to_pylist()
    assert index == [name for name in everything if name in set(index)]


def test_same_shards_same_bytes(tmp_path: Path) -> None:
    shards = write_shards(tmp_path)
    for name in ("one", "two"):
        pack(shards, tmp_path / name)
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_recording_is_never_divided(tmp_path: Path) -> None:
    facts = pack(write_shards(tmp_path), tmp_path / "out")
    counts = facts["splits"]
    assert sum(c["num_recordings"] for c in counts.values()) == 30
    assert all(c["num_utterances"] == 2 * c["num_recordings"] for c in counts.values())


def test_the_split_is_pinned() -> None:
    assert [split_of(f"r{n}", SHARES) for n in range(8)] == PINNED


def test_shares_are_respected() -> None:
    names = [split_of(f"recording {n}", Split(valid=0.1, test=0.3)) for n in range(4000)]
    assert names.count("valid") / 4000 == pytest.approx(0.1, abs=0.02)
    assert names.count("test") / 4000 == pytest.approx(0.3, abs=0.03)


def test_growing_the_test_share_moves_nothing_into_valid() -> None:
    small, large = Split(valid=0.1, test=0.1), Split(valid=0.1, test=0.3)
    for n in range(500):
        if split_of(str(n), small) != "train":
            assert split_of(str(n), large) == split_of(str(n), small)


def test_a_smaller_part_of_training_lies_within_a_larger_one() -> None:
    """And what is held out stays, so that runs of 1, 10 and 100 % are compared on the same."""
    names = [f"recording {n}" for n in range(4000)]
    parts = [1.0, 0.5, 0.1, 0.01]
    found = [[split_of(n, Split(valid=0.1, train_fraction=part)) for n in names] for part in parts]
    sizes = [splits.count("train") / found[0].count("train") for splits in found]
    assert sizes == pytest.approx(parts, abs=0.03)
    for larger, smaller in itertools.pairwise(found):
        for before, after in zip(larger, smaller, strict=True):
            assert after == before or (before, after) == ("train", None)


def test_a_part_of_training_leaves_the_other_splits_their_bytes(tmp_path: Path) -> None:
    shards = write_shards(tmp_path)
    whole = pack(shards, tmp_path / "whole")
    (tmp_path / "part").mkdir()
    thin = SHARES.model_copy(update={"train_fraction": 0.5})
    part = pack_shards(shards, UsedRows(), tmp_path / "part", shares=thin, num_units=50)
    for name in ("valid.bin", "valid.idx.parquet", "test.bin", "test.idx.parquet"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    kept = [row["id"] for row in pq.read_table(tmp_path / "part/train.idx.parquet").to_pylist()]
    of_whole = [r["id"] for r in pq.read_table(tmp_path / "whole/train.idx.parquet").to_pylist()]
    assert kept == [name for name in of_whole if name in kept]
    assert part["num_thinned_utterances"] == len(of_whole) - len(kept)
    assert 0 < len(kept) < len(of_whole)
    assert "train_fraction" not in whole


def test_a_unit_outside_the_codebook(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, num_units=60)
    with pytest.raises(CorruptError, match="of a codebook of 50; tokenize again"):
        pack(shards, tmp_path / "out")


def test_empty_utterances_are_counted_and_left_out(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": ["a", "b"],
            "recording": ["a", "b"],
            "units": pa.array([[], [1, 2]], pa.list_(pa.uint16())),
            "num_samples": pa.array([100, 640], pa.int64()),
        }
    )
    pq.write_table(table, tmp_path / "000000.parquet")
    facts = pack([tmp_path / "000000.parquet"], tmp_path / "out")
    assert facts["num_empty_utterances"] == 1
    assert sum(c["num_utterances"] for c in facts["splits"].values()) == 1
    with pytest.raises(DataError, match="none of the 1 recordings fell into the"):
        check_splits(facts)


def test_a_long_index_is_written_in_row_groups(tmp_path: Path) -> None:
    rows = 70_000
    table = pa.table(
        {
            "id": [str(n) for n in range(rows)],
            "recording": ["r0"] * rows,
            "units": pa.ListArray.from_arrays(
                pa.array(range(rows + 1), pa.int32()), pa.array([7] * rows, pa.uint16())
            ),
            "num_samples": pa.array([320] * rows, pa.int64()),
        }
    )
    pq.write_table(table, tmp_path / "000000.parquet")
    pack([tmp_path / "000000.parquet"], tmp_path / "out")
    index = pq.ParquetFile(tmp_path / "out" / f"{PINNED[0]}.idx.parquet")
    assert index.num_row_groups == 2
    assert index.read()["offset"].to_pylist() == list(range(rows))
