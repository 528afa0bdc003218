"""An attempt's folder: its events, and the last of them."""

from __future__ import annotations

import time

import pytest

from orchestrator.errors import AlreadyExistsError, Cause, CorruptError
from orchestrator.ledger.attempt import AttemptFolder
from orchestrator.ledger.storage import Storage


@pytest.fixture
def attempt(storage: Storage) -> AttemptFolder:
    return AttemptFolder(1, storage)


def test_an_attempt_that_has_not_failed(attempt: AttemptFolder) -> None:
    assert attempt.failure == {}
    attempt.storage.create("events-0001.jsonl", b'{"at": 1, "kind": "begin"}\n')
    assert attempt.failure == {}


def test_a_failure_is_the_last_event(attempt: AttemptFolder) -> None:
    attempt.storage.create("events-0001.jsonl", b'{"at": 1, "kind": "begin"}\n')
    attempt.record_failure(Cause.STORAGE, "the disk is full")
    assert [e["kind"] for e in attempt.events()] == ["begin", "failed"]
    failure = attempt.failure
    assert (failure["cause"], failure["message"]) == (Cause.STORAGE, "the disk is full")


def test_a_segment_is_never_overwritten(attempt: AttemptFolder) -> None:
    attempt.storage.create("events-0002.jsonl", b"")
    with pytest.raises(AlreadyExistsError):
        attempt.record_failure(Cause.ERROR, "x")


@pytest.mark.parametrize("end", [b"", b"[]", b"{}", b'{"ended_at": "soon"}', b'{"ended_at": null}'])
def test_a_damaged_end_is_named(attempt: AttemptFolder, end: bytes) -> None:
    attempt.storage.create("end.json", end)
    with pytest.raises(CorruptError, match=r"end\.json: .*(move the attempt's folder|remove it)"):
        assert attempt.end


def test_how_many_nodes_it_had_and_since_when(attempt: AttemptFolder) -> None:
    assert attempt.nodes == ()
    began = time.time()
    attempt.note_nodes(2)
    attempt.note_nodes(3)
    assert [number for _, number in attempt.nodes] == [2, 3]
    assert all(began <= at <= time.time() for at, _ in attempt.nodes)
