"""Reading Parquet from memory, and what it leaves behind."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.parquet import read_parquet

TABLE = pa.table({"id": ["a", "b"], "nll": [1.5, None], "units": [[1, 2], []]})


def in_memory(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def test_a_table_comes_back_whole_or_in_part() -> None:
    assert read_parquet(in_memory(TABLE)).equals(TABLE)
    assert read_parquet(in_memory(TABLE), ["nll"]).equals(TABLE.select(["nll"]))


@pytest.mark.parametrize("data", [b"", b"garbage", in_memory(TABLE)[:-9]])
def test_what_is_none_is_an_error(data: bytes) -> None:
    with pytest.raises(pa.ArrowInvalid):
        read_parquet(data)


def test_no_thread_is_left_that_could_outlive_the_interpreter(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(in_memory(TABLE))
    program = (
        "import os, pathlib, sys; from orchestrator.parquet import read_parquet; "
        "data = pathlib.Path(sys.argv[1]).read_bytes(); before = os.listdir('/proc/self/task'); "
        "read_parquet(data); print(os.listdir('/proc/self/task') == before)"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "t.parquet")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]
