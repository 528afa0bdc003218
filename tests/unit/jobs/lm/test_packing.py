from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.lm.packing import deal_out, pack_shards
from jobs.lm.splits import SPLITS
from jobs.unit_shards import UsedRows
from orchestrator.errors import CorruptError, DataError
from orchestrator.spec.recipe import Split

SHARES = Split(valid=0.2, test=0.2)


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


def pack(
    shards: list[Path], folder: Path, shares: Split = SHARES, sources: Sequence[str] = ()
) -> dict[str, Any]:
    folder.mkdir()
    return pack_shards(
        shards,
        UsedRows(),
        folder,
        shares=shares,
        deal=deal_out(shards, UsedRows(), shares),
        num_units=50,
        sources=sources,
    )


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


def test_a_part_of_training_leaves_the_other_splits_their_bytes(tmp_path: Path) -> None:
    shards = write_shards(tmp_path)
    whole = pack(shards, tmp_path / "whole")
    thin = SHARES.model_copy(update={"train_fraction": 0.5})
    part = pack(shards, tmp_path / "part", thin)
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


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A shard of these rows; ids, recordings and lengths follow from the rest."""
    fields = {"id": pa.string(), "recording": pa.string(), "units": pa.list_(pa.uint16())}
    more = {n: pa.string() for n in ("source", "speaker", "session")}
    schema = pa.schema({**fields, "num_samples": pa.int64(), **more})
    whole = [{"id": r["recording"], "num_samples": 320 * len(r["units"]), **r} for r in rows]
    pq.write_table(pa.Table.from_pylist(whole, schema), path)
    return path


def recordings_in(folder: Path) -> dict[str, list[str]]:
    return {
        name: pq.read_table(folder / f"{name}.idx.parquet")["id"].to_pylist() for name in SPLITS
    }


def test_empty_utterances_are_counted_and_left_out(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d")
    rows = [{"recording": name, "units": [] if name == "a" else [1, 2]} for name in names]
    facts = pack([write_rows(tmp_path / "000000.parquet", rows)], tmp_path / "out")
    assert facts["num_empty_utterances"] == 1
    assert [c["num_utterances"] for c in facts["splits"].values()] == [1, 1, 1]


def test_two_recordings_with_units_are_too_few(tmp_path: Path) -> None:
    rows = [{"recording": name, "units": [1] * (name < "c")} for name in ("a", "b", "c")]
    with pytest.raises(DataError, match="there are 2 of them"):
        pack([write_rows(tmp_path / "000000.parquet", rows)], tmp_path / "out")


def test_a_few_recordings_are_dealt_out_by_rank(tmp_path: Path) -> None:
    """Over all shards, the last of which decides."""
    shards = [
        write_rows(tmp_path / f"{n:06d}.parquet", [{"recording": f"s/{n}", "units": [n]}] * 2)
        for n in range(5)
    ]
    facts = pack(shards, tmp_path / "out", Split())
    assert {n: c["num_recordings"] for n, c in facts["splits"].items()} == {
        "train": 3,
        "valid": 1,
        "test": 1,
    }
    assert facts["dealt"].startswith("the shares leave a split empty")
    assert "dealt" not in pack(write_shards(tmp_path), tmp_path / "many")


@pytest.mark.parametrize(("by", "column"), [("session", "session"), ("speaker", "speaker")])
def test_what_belongs_together_stays_together(tmp_path: Path, by: str, column: str) -> None:
    rows = [
        {
            "recording": f"s/{n}",
            "source": "s",
            "session": f"book{n % 7}",
            "speaker": f"v{n % 11}",
            "units": [n % 50],
        }
        for n in range(200)
    ]
    shards = [write_rows(tmp_path / f"{n:06d}.parquet", rows[n::4]) for n in range(4)]
    pack(shards, tmp_path / "out", Split(valid=0.1, test=0.1, by=by))
    of = {row["recording"]: row[column] for row in rows}
    held = {n: {of[r] for r in found} for n, found in recordings_in(tmp_path / "out").items()}
    assert sum(map(len, held.values())) == len({row[column] for row in rows})
    assert all(held.values())


def mixed_shards(folder: Path) -> list[Path]:
    """Sources take turns, as they do in no corpus."""
    rows = [
        {"recording": f"{s}/{n}", "source": s, "units": [n % 50] * (1 + n % 3)}
        for n in range(90)
        for s in ("talks", "books")
    ]
    return [write_rows(folder / f"{n:06d}.parquet", rows[60 * n : 60 * n + 60]) for n in range(3)]


def test_training_by_source_holds_one_source_after_the_other(tmp_path: Path) -> None:
    shards = mixed_shards(tmp_path)
    plain = pack(shards, tmp_path / "plain")
    mixed = pack(shards, tmp_path / "mixed", sources=("books", "talks"))
    before, after = (recordings_in(tmp_path / name) for name in ("plain", "mixed"))
    of = {s: [r for r in before["train"] if r.startswith(s)] for s in ("books", "talks")}
    assert after == {**before, "train": of["books"] + of["talks"]}
    assert mixed["splits"] == plain["splits"]
    assert "streams" not in plain
    assert [stream["source"] for stream in mixed["streams"]] == ["books", "talks"]
    streams = {stream.pop("source"): stream for stream in mixed["streams"]}
    assert streams["books"]["num_recordings"] == len(of["books"])
    total = streams["books"]["num_tokens"] + streams["talks"]["num_tokens"]
    assert total == mixed["splits"]["train"]["num_tokens"]
    tokens = np.fromfile(tmp_path / "mixed" / "train.bin", "<u2")
    for row in pq.read_table(tmp_path / "mixed" / "train.idx.parquet").to_pylist():
        own = tokens[row["offset"] : row["offset"] + row["num_tokens"]].tolist()
        n = int(row["id"].partition("/")[2])
        assert own == [n % 50] * (1 + n % 3)
    for name in ("valid.bin", "valid.idx.parquet", "test.bin", "test.idx.parquet"):
        assert (tmp_path / "mixed" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert len(list((tmp_path / "mixed").iterdir())) == 6


def test_streams_of_shards_that_name_no_source(tmp_path: Path) -> None:
    """Earlier versions have it in the recording's id alone."""
    shards = mixed_shards(tmp_path)
    pack(shards, tmp_path / "one", sources=("books", "talks"))
    for shard in shards:
        table = pq.read_table(shard).drop_columns(["source", "speaker", "session"])
        pq.write_table(table, shard)
    pack(shards, tmp_path / "two", sources=("books", "talks"))
    assert recordings_in(tmp_path / "one") == recordings_in(tmp_path / "two")


def test_a_source_without_anything_to_train_on_is_an_empty_stream(tmp_path: Path) -> None:
    facts = pack(mixed_shards(tmp_path), tmp_path / "out", sources=("books", "none", "talks"))
    assert [stream["num_tokens"] > 0 for stream in facts["streams"]] == [True, False, True]
    assert facts["splits"]["train"]["num_utterances"] > 0


def test_a_long_index_is_written_in_row_groups(tmp_path: Path) -> None:
    rows = 70_000
    table = pa.table(
        {
            "id": [str(n) for n in range(rows + 2)],
            "recording": ["r0"] * rows + ["r5", "r6"],
            "units": pa.ListArray.from_arrays(
                pa.array(range(rows + 3), pa.int32()), pa.array([7] * (rows + 2), pa.uint16())
            ),
            "num_samples": pa.array([320] * (rows + 2), pa.int64()),
        }
    )
    pq.write_table(table, tmp_path / "000000.parquet")
    pack([tmp_path / "000000.parquet"], tmp_path / "out")
    index = pq.ParquetFile(tmp_path / "out" / "train.idx.parquet")
    assert index.num_row_groups == 2
    assert index.read()["offset"].to_pylist() == list(range(rows))


@pytest.mark.parametrize("unused", [{"left_out": "silent"}, {"unreadable": "damaged"}, None])
def test_a_shard_of_which_nothing_is_used(tmp_path: Path, unused: dict[str, str] | None) -> None:
    shards = write_shards(tmp_path)
    facts = pack(shards, tmp_path / "out")
    row = {"id": "x", "recording": "x", "units": [1], "num_samples": 320}
    whole = [{**row, **unused}] if unused else []
    schema = pq.read_schema(shards[0])
    for name in unused or ():
        schema = schema.append(pa.field(name, pa.string()))
    pq.write_table(pa.Table.from_pylist(whole, schema), tmp_path / "000003.parquet")
    assert pack([*shards, tmp_path / "000003.parquet"], tmp_path / "again") == facts
