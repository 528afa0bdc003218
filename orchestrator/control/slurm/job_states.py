"""What is known of a run's jobs on Slurm: from the ledger, and from the scheduler's newest answer.

In: submissions and attempts in the run's folder, answers of the backend. Out: how each job stands,
which nodes fail, what is left to do. Nothing here asks or submits; what was answered is written
down for the time when nobody answers.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any

from orchestrator.backends.base import JobRef
from orchestrator.backends.slurm import NAME
from orchestrator.errors import Cause
from orchestrator.ledger.records import understood
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import JobState, JobStatus, Observed
from orchestrator.ledger.store import Store
from orchestrator.ledger.submission import SEEN, JobKind, SubmittedJob
from orchestrator.plan.planner import Instance, Plan

LOOK_EVERY_S = 15.0
"""How often those who watch a run ask the scheduler."""


@dataclass(frozen=True)
class JobStates:
    """The newest jobs of a run, and how each stands by its id."""

    jobs: Sequence[SubmittedJob]
    states: Mapping[str, JobStatus]

    def has(self, kind: JobKind, instance: str) -> bool:
        """Whether such a job is queued or running; one that nobody knows is neither."""
        theirs = [j for j in self._live() if j.kind == kind and j.instance == instance]
        return any(self.states[job.id].state is not JobState.UNKNOWN for job in theirs)

    def unknown(self, instance: str) -> str:
        """What to know of a stage's job that the scheduler does not know; empty for others."""
        status = self._of_stage(instance)
        return status.detail if status and status.state is JobState.UNKNOWN else ""

    def waits(self, instance: str) -> str:
        """Why a stage's job waits, in plain words; empty where nobody needs to know."""
        status = self._of_stage(instance)
        return status.waits if status else ""

    def _of_stage(self, instance: str) -> JobStatus | None:
        own = (job for job in self.jobs if job.kind == "stage" and job.instance == instance)
        return next((self.states[job.id] for job in own), None)

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


def failing_nodes(run: RunFolder, cluster: str) -> tuple[str, ...]:
    """Nodes of a cluster, by Slurm's name of it, that a stage was to be kept off.

    Where the name is not known they are those that failed since the run has moved last.
    """
    attempts = [a for i in run.plan().leaders for a in run.attempts(i.id)]
    found: list[str] = []
    for attempt in attempts:
        started, end = attempt.started, attempt.end
        there = started.get("cluster", "")
        is_here = started.get("moves", 0) == run.num_moves
        if there == cluster if there and cluster else is_here:
            found += [end["node"]] if end and end.get("action") == "elsewhere" else []
            found += attempt.failing_nodes
    return tuple(dict.fromkeys(node for node in found if node))


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


def open_jobs(run: RunFolder) -> dict[JobRef, SubmittedJob]:
    """A run's jobs that were not seen to end: about the others there is nothing to ask."""
    known, _ = _known(run)
    ended = {job_id for job_id, row in known.items() if JobState(row["state"]).is_final}
    return {ref_of(job): job for job in run.submissions.newest_jobs() if job.id not in ended}


def note_cancelled(run: RunFolder, refs: Iterable[JobRef], why: str) -> None:
    """Write down that jobs were cancelled, and why: where there are no books, only we know."""
    note_ends(run, dict.fromkeys(refs, cancelled(why)))


def cancelled(why: str) -> JobStatus:
    """How a job stands that was cancelled by us."""
    return JobStatus(state=JobState.CANCELLED, cause=Cause.CANCELLED, detail=why)


def note_ends(run: RunFolder, ends: Mapping[JobRef, JobStatus]) -> None:
    """Write down how jobs ended."""
    run.submissions.end({ref.id: asdict(status) for ref, status in ends.items()})


def note_own_end(run: RunFolder, job_id: str, state: str) -> None:
    """Let a job that is about to end by itself say so; a store that refuses changes nothing."""
    how = JobStatus(state=JobState(state), detail="as it wrote down itself")
    with suppress(OSError):
        run.submissions.end({job_id: asdict(how)})


def observed_from(run: RunFolder, answers: Mapping[JobRef, JobStatus], problem: str) -> Observed:
    """How a run stands, from the newest known status of its jobs, which is written down.

    How jobs ended that we ended ourselves is known without the scheduler. One that it does not know
    is unknown, until that has lasted too long or what we have written down proves its end. A failed
    run lives while a sentinel looks on.
    """
    submissions, now = run.submissions, time.time()
    jobs, (before, ended) = submissions.newest_jobs(), _known(run)
    rows = {job.id: _row(job, before.get(job.id), answers, now, problem) for job in jobs}
    if rows and not problem:
        with suppress(OSError):  # somebody else's run may be looked at, not written
            submissions.remember({i: row for i, row in rows.items() if i not in ended})
    return _observed(run, jobs, rows, now, problem)


def last_known(run: RunFolder, running: str) -> Observed:
    """How a run stands while one of its jobs runs, by the ledger alone: nobody is asked."""
    jobs, (before, _) = run.submissions.newest_jobs(), _known(run)
    rows = {job.id: {"state": JobState.QUEUED, **before.get(job.id, {})} for job in jobs}
    rows |= {running: {"state": JobState.RUNNING}} if running in rows else {}
    return _observed(run, jobs, rows, time.time())


def _known(run: RunFolder) -> tuple[dict[str, Any], Collection[str]]:
    """What was last known of each job, by id, and the ids of those whose end was written down.

    Raises CorruptError.
    """
    with understood(f"{run.storage.url}/{SEEN}", "remove it"):
        seen = _checked(run.submissions.seen())
    with understood(f"{run.storage.url}/submissions", "remove the damaged ended.json below it"):
        ended = _checked(run.submissions.ended())
    return {**seen, **ended}, ended.keys()


def _checked(rows: dict[str, Any]) -> dict[str, Any]:
    """The same rows. Raises ValueError, KeyError or TypeError when one says nothing of a job."""
    for row in rows.values():
        JobState(row["state"]), Cause(row.get("cause") or Cause.UNKNOWN)
        float(row.get("absent_since") or 0.0)
    return rows


def _observed(
    run: RunFolder,
    jobs: Sequence[SubmittedJob],
    rows: Mapping[str, Mapping[str, Any]],
    now: float,
    problem: str = "",
) -> Observed:
    newest, timeout_s = run.submissions.all()[-1:], run.cluster().slurm.missing_timeout_s
    seen = {job.id: _status_of(job, rows[job.id], now, timeout_s) for job in jobs}
    stages = {job.instance: job for job in jobs if job.kind == "stage"}
    seen |= _proven_ends(run, stages, seen)
    states = {instance: seen[job.id] for instance, job in stages.items()}
    ends = [s.state for s in states.values() if s.state.is_final]
    sentinels = {seen[job.id].state for job in jobs if job.kind == "sentinel"}
    has_failed = any(state is not JobState.SUCCEEDED for state in ends)
    # A sentinel that has something to see to will start, or is at it.
    is_watched = has_failed and bool(sentinels & {JobState.QUEUED, JobState.RUNNING})
    return Observed(
        is_alive=is_watched or len(ends) < len(stages),
        jobs=states,
        by_id=seen,
        problem=problem,
        refusal=newest[0].refusal if newest else "",
        look_every_s=LOOK_EVERY_S,
    )


def _row(
    job: SubmittedJob,
    before: Mapping[str, Any] | None,
    answers: Mapping[JobRef, JobStatus],
    now: float,
    problem: str,
) -> dict[str, Any]:
    """What is known of a job: the answer, else what was known, and since when nobody knows it."""
    last = {"state": JobState.QUEUED, **(before or {})}
    answer = answers.get(ref_of(job))
    if answer is not None and answer.state is not JobState.UNKNOWN:
        return {**asdict(answer), "absent_since": None}
    if problem or answer is None or JobState(last["state"]).is_final:
        return last
    return {**last, "absent_since": last.get("absent_since") or now}


def _status_of(
    job: SubmittedJob, row: Mapping[str, Any], now: float, timeout_s: float
) -> JobStatus:
    since = row.get("absent_since")
    if since is None:
        known = {f.name for f in fields(JobStatus)}
        cause = Cause(row["cause"]) if row.get("cause") else None
        facts = {name: value for name, value in row.items() if name in known}
        return JobStatus(**{**facts, "state": JobState(row["state"]), "cause": cause})
    if now - since > timeout_s:
        detail = f"unknown to the scheduler for more than {timeout_s:.0f} s"
        return JobStatus(state=JobState.FAILED, cause=Cause.NODE_LOST, detail=detail)
    detail = (
        f"job {job.id} is unknown to the scheduler since {_clock(since)}; it counts as lost from "
        f"{_clock(since + timeout_s)} on (slurm.missing_timeout_s)"
    )
    return JobStatus(state=JobState.UNKNOWN, detail=detail)


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _proven_ends(
    run: RunFolder, stages: Mapping[str, SubmittedJob], seen: Mapping[str, JobStatus]
) -> dict[str, JobStatus]:
    """Ends of unknown jobs that our own records prove, by the job's id.

    An attempt that has ended, and none after it: a job between two of them would be known. And a
    job that comes after one that has not succeeded: Slurm cancels it.
    """
    plan, states = run.plan(), dict(seen)
    for instance in plan.leaders:  # in the order of the data's path
        job = stages.get(instance.id)
        if job is None or states[job.id].state is not JobState.UNKNOWN:
            continue
        upstream = [states[stages[n].id].state for n in plan.upstream(instance.id) if n in stages]
        if any(state.is_final and state is not JobState.SUCCEEDED for state in upstream):
            detail = "what it comes after has not succeeded"
            states[job.id] = JobStatus(state=JobState.CANCELLED, detail=detail)
        elif end := _end_of_attempt(run, instance.id, job):
            states[job.id] = end
    return states


def _end_of_attempt(run: RunFolder, instance: str, job: SubmittedJob) -> JobStatus | None:
    """How the job's newest attempt ended; None where it has made none, or that is not known."""
    attempts = run.attempts(instance)
    if not attempts or attempts[-1].started.get("job") != job.id or not (end := attempts[-1].end):
        return None
    states = (JobState.SUCCEEDED, JobState.CANCELLED, JobState.PREEMPTED)
    state = next((s for s in states if s == end["state"]), JobState.FAILED)
    cause = Cause(end["cause"]) if end.get("cause") else None
    return JobStatus(state=state, cause=cause, detail=str(end.get("reason") or ""))
