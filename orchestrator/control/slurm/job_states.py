"""What is known of a run's jobs on Slurm: from the ledger, and from the scheduler's newest answer.

In: submissions and attempts in the run's folder, answers of the backend. Out: how each job stands,
which nodes fail, what is left to do. Nothing here asks or submits; what was answered is written
down for the time when nobody answers.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.backends.base import JobRef
from orchestrator.backends.slurm import NAME
from orchestrator.errors import Cause
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import JobState, JobStatus, Observed
from orchestrator.ledger.store import Store
from orchestrator.ledger.submission import JobKind, SubmittedJob
from orchestrator.plan.planner import Instance, Plan

LOOK_EVERY_S = 15.0
"""How often those who watch a run ask the scheduler."""


@dataclass(frozen=True)
class JobStates:
    """The newest jobs of a run, and how each stands by its id."""

    jobs: Sequence[SubmittedJob]
    states: Mapping[str, JobStatus]

    def has(self, kind: JobKind, instance: str) -> bool:
        """Whether such a job is queued or running."""
        return any(job.kind == kind and job.instance == instance for job in self._live())

    def live_stages(self) -> dict[str, SubmittedJob]:
        """The job of each stage instance whose own job is queued or running."""
        return {job.instance: job for job in self._live() if job.kind == "stage"}

    def waiting_sentinels(self) -> list[SubmittedJob]:
        """Those that have not started: one that runs is the one that asks."""
        sentinels = (job for job in self._live() if job.kind == "sentinel")
        return [job for job in sentinels if self.states[job.id].state is JobState.QUEUED]

    def living(self, instances: Collection[str], *, and_sentinel: bool) -> list[SubmittedJob]:
        """All jobs of some instances that have not ended, held ones included."""
        theirs = (job for job in self.jobs if job.instance in instances)
        found = [job for job in theirs if not self.states[job.id].state.is_final]
        return found + (self.waiting_sentinels() if and_sentinel else [])

    def _live(self) -> Iterator[SubmittedJob]:
        """Jobs that are queued or running."""
        for job in self.jobs:
            status = self.states[job.id]
            if not status.state.is_final and not status.is_held:
                yield job


def unfinished(plan: Plan, store: Store) -> list[Instance]:
    """The stage instances that are not complete, in the order of the data's path."""
    return [i for i in plan.leaders if not store.has(*plan.group(i.id))]


def work_left(plan: Plan, store: Store) -> dict[str, float]:
    """The same, and how far the work on each is."""
    return {i.id: store.progress(*plan.group(i.id)) for i in unfinished(plan, store)}


def failing_nodes(run: RunFolder) -> tuple[str, ...]:
    """Nodes of this cluster that a stage was to be kept off."""
    attempts = [a for i in run.plan().leaders for a in run.attempts(i.id)]
    here = [a for a in attempts if a.started.get("moves", 0) == run.num_moves]
    nodes = [end["node"] for a in here if (end := a.end) and end.get("action") == "elsewhere"]
    return tuple(dict.fromkeys(node for node in nodes if node))


def close_attempts(
    run: RunFolder,
    store: Store,
    instance: str,
    status: JobStatus,
    ended_at: float | None = None,
) -> None:
    """Say how attempts ended whose job was ended before they could; by now when no time is known.

    ``ended_at`` is in seconds since the epoch.
    """
    for attempt in run.attempts(instance):
        if attempt.end is None:
            cause = status.cause or Cause.NODE_LOST
            is_told = cause in (Cause.PREEMPTED, Cause.CANCELLED)
            attempt.finish(
                state=cause if is_told else "failed",
                ended_at=ended_at or time.time(),
                cause=cause,
                action="resume",
                reason=f"the scheduler says: {status.detail or 'nothing'}",
                exit_code=status.exit_code,
                node=status.node,
                progress=store.progress(*run.plan().group(instance)),
            )


def refs_of(run: RunFolder, kind: JobKind, instance: str) -> list[JobRef]:
    """The newest jobs of a kind for a stage instance."""
    jobs = run.submissions.newest_jobs()
    return [ref_of(job) for job in jobs if job.kind == kind and job.instance == instance]


def ref_of(job: SubmittedJob) -> JobRef:
    """The job as the backend is asked about it."""
    return JobRef(backend=NAME, id=job.id, submitted_at=job.submitted_at)


def open_refs(run: RunFolder) -> list[JobRef]:
    """A run's jobs that were not seen to end: about the others there is nothing to ask."""
    seen = run.submissions.seen()
    ended = {job_id for job_id, row in seen.items() if JobState(row["state"]).is_final}
    return [ref_of(job) for job in run.submissions.newest_jobs() if job.id not in ended]


def observed_from(run: RunFolder, answers: Mapping[JobRef, JobStatus], problem: str) -> Observed:
    """How a run stands, from the newest known status of its jobs, which is written down.

    A job that the scheduler does not know keeps its last state, until that has lasted too long. A
    failed run lives while a sentinel looks on.
    """
    submissions, now = run.submissions, time.time()
    newest = submissions.all()[-1:]
    before, jobs = submissions.seen(), submissions.newest_jobs()
    rows: dict[str, dict[str, Any]] = {}
    for job in jobs:
        last = before.get(job.id, {"state": JobState.QUEUED, "absent_since": None})
        answer = answers.get(ref_of(job))
        if answer is not None and answer.state is not JobState.UNKNOWN:
            rows[job.id] = {**asdict(answer), "absent_since": None}
        elif problem or answer is None or JobState(last["state"]).is_final:
            rows[job.id] = last
        else:
            rows[job.id] = {**last, "absent_since": last["absent_since"] or now}
    if rows and not problem:
        with suppress(OSError):  # somebody else's run may be looked at, not written
            submissions.remember(rows)
    timeout_s = run.cluster().slurm.missing_timeout_s
    seen = {job_id: _status_of(row, now, timeout_s) for job_id, row in rows.items()}
    stages = {job.instance: seen[job.id] for job in jobs if job.kind == "stage"}
    ends = [s.state for s in stages.values() if s.state.is_final]
    sentinels = [seen[job.id] for job in jobs if job.kind == "sentinel"]
    has_failed = any(state is not JobState.SUCCEEDED for state in ends)
    # A sentinel that has something to see to will start, or is at it.
    is_watched = has_failed and any(not s.state.is_final for s in sentinels)
    return Observed(
        is_alive=is_watched or len(ends) < len(stages),
        jobs=stages,
        by_id=seen,
        problem=problem,
        refusal=newest[0].refusal if newest else "",
        look_every_s=LOOK_EVERY_S,
    )


def _status_of(row: Mapping[str, Any], now: float, timeout_s: float) -> JobStatus:
    absent_since = row["absent_since"]
    if absent_since is not None and now - absent_since > timeout_s:
        return JobStatus(
            state=JobState.FAILED,
            cause=Cause.NODE_LOST,
            detail=f"unknown to the scheduler for more than {timeout_s:.0f} s",
        )
    fields = {name: value for name, value in row.items() if name != "absent_since"}
    cause = Cause(row["cause"]) if row.get("cause") else None
    return JobStatus(**{**fields, "state": JobState(row["state"]), "cause": cause})
