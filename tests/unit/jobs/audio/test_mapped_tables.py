from __future__ import annotations

from contextlib import closing

import numpy as np
import pyarrow as pa
import pytest

from jobs.audio.corpus_tables import create_table, pieces_of
from jobs.audio.mapped_tables import SortedRows, TableFile
from orchestrator.ledger.storage import Storage

SCHEMA = pa.schema([("id", pa.string()), ("spans_s", pa.list_(pa.int64())), ("size", pa.int64())])


def _table(numbers: np.ndarray) -> pa.Table:
    ids = pa.array(numbers).cast(pa.string())
    edges = pa.array(np.arange(len(numbers) + 1), pa.int32())
    return pa.table([ids, pa.ListArray.from_arrays(edges, numbers), numbers], schema=SCHEMA)


@pytest.mark.parametrize("order", ["rising", "falling", "shuffled"])
def test_rows_in_any_order_give_the_bytes_of_a_table_that_is_sorted_at_once(order, tmp_path):
    numbers = np.arange(150_000)
    if order == "falling":
        numbers = numbers[::-1].copy()
    if order == "shuffled":
        np.random.default_rng(0).shuffle(numbers)
    given = _table(numbers)
    with closing(SortedRows(SCHEMA)) as rows:
        for batch in given.to_batches(max_chunksize=11_000):
            rows.add(batch)
        found = rows.table()
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
