"""The Jobs API: states, refusals, and answers that are lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from orchestrator.backends.base import Job, JobRef
from orchestrator.backends.ray_jobs import RayJobs
from orchestrator.errors import BackendError, ExitCode
from orchestrator.ledger.status import JobState
from tests.jobs_api import Fault, PlayedHead, playing

JOB = Job(name="r", argv=("python", "-m", "m", "--run", "a b"), log=Path("l"), tag="r-s0001")


@pytest.fixture
def head() -> Iterator[PlayedHead]:
    with playing() as head:
        yield head


def jobs_of(head: PlayedHead, token: str = "t0k3n") -> RayJobs:
    return RayJobs(head.url, token, pause_s=0.0)


def test_a_job_is_a_command_that_takes_no_cores(head: PlayedHead) -> None:
    ref = jobs_of(head).submit(JOB)
    assert ref.id == "r-s0001"
    asked = head.jobs["r-s0001"]
    assert asked["entrypoint"] == "python -m m --run 'a b'"
    assert asked["entrypoint_num_cpus"] == 0
    assert asked["runtime_env"] == {}


@pytest.mark.parametrize(
    "faults", [["lost after"], ["lost before"], ["busy"], ["lost after", "busy", "lost before"]]
)
def test_a_job_is_submitted_once_whatever_becomes_of_the_answer(
    head: PlayedHead, faults: list[str]
) -> None:
    head.faults = [cast(Fault, fault) for fault in faults]
    first, second = jobs_of(head).submit(JOB), jobs_of(head).submit(JOB)
    assert list(head.jobs) == [first.id] == [second.id]


def test_those_that_run_are_listed_and_those_that_ended_forgotten(head: PlayedHead) -> None:
    jobs = jobs_of(head)
    ref, other = jobs.submit(JOB), jobs.submit(replace(JOB, tag="other", name="o"))
    head.jobs["driver"] = {"submission_id": None, "status": "RUNNING", "metadata": None}
    assert jobs.running() == {"r-s0001": "r", "other": "o"}
    head.jobs[other.id]["status"] = "SUCCEEDED"
    assert jobs.running() == {"r-s0001": "r"}
    jobs.forget(other)
    assert jobs.poll([ref, other])[other].state is JobState.UNKNOWN


def test_a_head_that_never_takes_it_is_named(head: PlayedHead) -> None:
    head.faults = ["busy"] * 40
    with pytest.raises(BackendError, match=rf"ray: {head.url}: busy \(503\)"):
        jobs_of(head).submit(JOB)
    assert head.jobs == {}


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("PENDING", JobState.QUEUED),
        ("RUNNING", JobState.RUNNING),
        ("SUCCEEDED", JobState.SUCCEEDED),
        ("FAILED", JobState.FAILED),
        ("STOPPED", JobState.CANCELLED),
        ("SOMETHING", JobState.UNKNOWN),
    ],
)
def test_states(head: PlayedHead, word: str, state: JobState) -> None:
    ref = jobs_of(head).submit(JOB)
    head.jobs[ref.id] |= {"status": word, "message": "so it is", "driver_exit_code": 3}
    status = jobs_of(head).poll([ref])[ref]
    assert (status.state, status.exit_code) == (state, 3)


def test_what_the_head_forgot_is_unknown_and_has_no_log(head: PlayedHead) -> None:
    ref = JobRef(backend="ray", id="gone")
    assert jobs_of(head).poll([ref])[ref].state is JobState.UNKNOWN
    assert jobs_of(head).log(ref) == ""


def test_a_job_is_stopped_and_its_log_read(head: PlayedHead) -> None:
    jobs = jobs_of(head)
    ref = jobs.submit(JOB)
    head.jobs[ref.id]["logs"] = "one\ntwo\n"
    assert jobs.log(ref) == "one\ntwo\n"
    jobs.cancel([ref])
    assert jobs.poll([ref])[ref].state is JobState.CANCELLED


@pytest.mark.parametrize(("token", "code"), [("", 401), ("wrong", 403)])
def test_who_is_refused_is_told_of_the_token(head: PlayedHead, token: str, code: int) -> None:
    with pytest.raises(BackendError, match=rf"refuses us \({code}\); give .* RAY_AUTH_TOKEN") as e:
        jobs_of(head, token).version()
    assert e.value.exit_code == ExitCode.UNREACHABLE
    assert not jobs_of(head, token).is_open()


def test_an_open_head_is_noticed() -> None:
    with playing(token="") as head:
        assert jobs_of(head).is_open()
        assert jobs_of(head).version() == "2.60.0"


def test_nobody_listens() -> None:
    with pytest.raises(BackendError, match=r"does not answer \(.*refused\); see whether"):
        RayJobs("http://127.0.0.1:9").version()
