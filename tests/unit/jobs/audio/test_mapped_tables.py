from __future__ import annotations

import resource
import tempfile
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pyarrow as pa
import pytest

from jobs.audio.corpus_tables import create_table, pieces_of
from jobs.audio.mapped_tables import SortedRows, TableFile
from orchestrator.errors import Cause, RunFailedError
from orchestrator.ledger.storage import Storage

SCHEMA = pa.schema([("id", pa.string()), ("spans_s", pa.list_(pa.int64())), ("size", pa.int64())])


def _table(numbers: np.ndarray) -> pa.Table:
    ids = pa.array(numbers).cast(pa.string())
    edges = pa.array(np.arange(len(numbers) + 1), pa.int32())
    return pa.table([ids, pa.ListArray.from_arrays(edges, numbers), numbers], schema=SCHEMA)


def _sorted(tables: list[pa.Table]) -> pa.Table:
    with closing(SortedRows(SCHEMA)) as rows:
        for table in tables:
            for batch in table.to_batches():
                rows.add(batch)
        return rows.table()


@pytest.mark.parametrize("order", ["rising", "falling", "shuffled"])
def test_rows_in_any_order_give_the_bytes_of_a_table_that_is_sorted_at_once(order, tmp_path):
    numbers = np.arange(150_000)
    if order == "falling":
        numbers = numbers[::-1].copy()
    if order == "shuffled":
        np.random.default_rng(0).shuffle(numbers)
    given = _table(numbers)
    found = _sorted([given.slice(start, 11_000) for start in range(0, len(given), 11_000)])
    expected = given.sort_by("id")
    assert found.equals(expected)
    written = []
    for name, table in (("found", found), ("expected", expected)):
        out = Storage(str(tmp_path / name))
        for number, piece in enumerate(pieces_of(table)):
            create_table(out, str(number), piece)
        written.append([out.read_bytes(path) for path in out.list()])
    assert written[0] == written[1]


def test_a_table_is_mapped_and_not_held():
    held = pa.total_allocated_bytes()
    with closing(TableFile(SCHEMA)) as file:
        for _ in range(20):
            file.add(_table(np.arange(10_000)).to_batches()[0])
        table = file.table()
    assert table.num_rows == 200_000
    assert table["size"][-1].as_py() == 9_999
    assert pa.total_allocated_bytes() - held < table.nbytes / 20


def test_no_rows_are_a_table_too():
    with closing(SortedRows(SCHEMA)) as rows:
        assert rows.table().schema == SCHEMA


@pytest.fixture
def _full_disk() -> Iterator[None]:
    """No file can have more than 100 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("_full_disk")
@pytest.mark.parametrize("num_rows", [1_000, 5_000, 20_000])
def test_a_full_disk_is_named_with_its_folder(num_rows):
    given = [_table(np.arange(num_rows))] * 10
    with pytest.raises(RunFailedError, match=r"^TMPDIR: .* are free on") as raised:
        _sorted(given)
    assert raised.value.cause is Cause.STORAGE
    assert str(raised.value).startswith(f"TMPDIR: {tempfile.gettempdir()}: ")
