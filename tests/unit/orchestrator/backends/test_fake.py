"""The fake plays its script, and knows the states' meaning as the real ones do."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.backends.base import Job, JobRef
from orchestrator.backends.fake import DONE, FakeBackend
from orchestrator.ledger.status import JobState, JobStatus

JOB = Job(name="train", argv=("true",), log=Path("log"))
KILLED = JobStatus(state=JobState.FAILED, exit_code=-9)


def test_ends_come_in_the_order_of_the_script() -> None:
    seen: list[JobStatus] = []
    backend = FakeBackend({"train": [KILLED]}, lambda _, end: seen.append(end))
    refs = [backend.submit(JOB) for _ in range(2)]
    assert {s.state for s in backend.poll(refs).values()} == {JobState.RUNNING}
    assert list(backend.poll(refs).values()) == [KILLED, DONE] == seen
    assert backend.jobs == [JOB, JOB]


def test_cancelled_is_cancelled() -> None:
    backend = FakeBackend()
    ref = backend.submit(JOB)
    backend.cancel([ref])
    backend.poll([ref])
    assert backend.poll([ref])[ref].state is JobState.CANCELLED


@pytest.mark.parametrize("state", list(JobState))
def test_only_what_will_not_change_is_final(state: JobState) -> None:
    assert state.is_final == (state.value in ("succeeded", "failed", "cancelled", "preempted"))


def test_references_are_values() -> None:
    assert JobRef(backend="fake", id="1") == JobRef(backend="fake", id="1")
