"""What is used of unit shards, those of earlier versions included."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.audio.corpus_tables import QUARANTINE_SCHEMA, create_table
from jobs.unit_shards import QUARANTINE, SCHEMA, UsedRows, shard_path, shard_paths
from orchestrator.ledger.storage import Storage


def write(folder: Path, *rows: dict[str, str], schema: pa.Schema = SCHEMA) -> Path:
    units = {"units": [1], "durations": [2], "num_samples": 960}
    table = [{"id": row["recording"], **units, **row} for row in rows]
    pq.write_table(pa.Table.from_pylist(table, schema), folder / "shard.parquet")
    return folder / "shard.parquet"


def test_only_what_is_used_is_read(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    shard = write(
        tmp_path,
        {"recording": "a", "source": "s"},
        {"recording": "b", "left_out": "silent"},
        {"recording": "c", "unreadable": "damaged"},
        {"recording": "d"},
    )
    assert UsedRows.of(storage).read(shard, ["id", "source"]).to_pydict() == {
        "id": ["a", "d"],
        "source": ["s", None],
    }
    bad = [{"id": "d", "source": "s", "reason": "another shard could not read it"}]
    create_table(storage, QUARANTINE, pa.Table.from_pylist(bad, QUARANTINE_SCHEMA))
    assert UsedRows.of(storage).read(shard, ["id"])["id"].to_pylist() == ["a"]


def test_shards_of_earlier_versions_have_fewer_columns(tmp_path: Path) -> None:
    shard = write(tmp_path, {"recording": "a"}, schema=pa.schema(list(SCHEMA)[:5]))
    found = UsedRows().read(shard, ["recording", "units", "speaker"])
    assert found.to_pylist() == [{"recording": "a", "units": [1], "speaker": None}]


def test_shards_lie_a_thousand_in_a_folder() -> None:
    assert [shard_path(n) for n in (17, 1000, 1_234_567)] == [
        "shards/000/000017.parquet",
        "shards/001/001000.parquet",
        "shards/1234/1234567.parquet",
    ]
    assert shard_paths([shard_path(1), QUARANTINE, shard_path(0)]) == [shard_path(0), shard_path(1)]
