"""What a mover leaves behind, as others read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import AlreadyExistsError, CorruptError, RequestError
from orchestrator.ledger.moved import (
    Moved,
    arrived_from,
    claim,
    find_moved,
    record_arrival,
    record_moved,
)
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage

MOVED = Moved(to="s3://b/runs/r", at=1.0, leases={"train-1": 3}, work={"train-1": {"a": 1}})


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "runs" / "r"))


def test_a_run_that_goes_nowhere_is_here(storage: Storage) -> None:
    assert find_moved(storage) is None
    assert arrived_from(storage) == ""
    RunFolder(storage).require_here()


def test_where_a_run_goes_is_said_once(storage: Storage) -> None:
    record_moved(storage, MOVED)
    with pytest.raises(AlreadyExistsError):
        record_moved(storage, Moved(to="s3://c/runs/r", at=2.0))
    assert find_moved(storage) == MOVED
    with pytest.raises(RequestError, match=r"^r: is on its way to s3://b/runs/r; .*it stays$"):
        RunFolder(storage).require_here()
    record_arrival(storage, MOVED, 5.0)
    with pytest.raises(RequestError) as raised:
        RunFolder(storage).require_here()
    assert str(raised.value) == (
        "r: moved to s3://b/runs/r; `orchestrator resume s3://b/runs/r` goes on there"
    )
    claim(storage, "/a/runs/r")
    assert arrived_from(storage) == "/a/runs/r"


@pytest.mark.parametrize("text", [b"", b"[]", b'{"too": 1}'])
def test_a_damaged_record_is_named(storage: Storage, text: bytes) -> None:
    storage.create("moved.json", text)
    with pytest.raises(CorruptError, match=r"moved\.json: .*remove it"):
        find_moved(storage)
