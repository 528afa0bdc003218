"""What a run is doing: from its folder, the store, and where there is one the scheduler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from orchestrator.errors import Cause
from orchestrator.ledger.attempt import DRIVER_LOG, AttemptFolder
from orchestrator.ledger.goodput import goodput
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store
from orchestrator.plan.planner import Found, Instance
from orchestrator.plan.stages import BY_NAME

FINAL = ("succeeded", "failed", "cancelled")


class JobState(StrEnum):
    """What a backend can say about a job."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PREEMPTED = "preempted"
    UNKNOWN = "unknown"

    @property
    def is_final(self) -> bool:
        """Whether the job will not change any more."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.PREEMPTED)


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """What the backend said."""

    state: JobState
    exit_code: int | None = None
    """The process's exit code; negative when a signal ended it; None when not known."""
    node: str = ""
    detail: str = ""
    """The scheduler's own words."""
    cause: Cause | None = None
    """Why it ended, where the scheduler alone knows."""
    is_held: bool = False
    """Whether it waits in the queue and will never start by itself."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Whether somebody is at work on a run, and what a scheduler says of its jobs."""

    is_alive: bool
    """Whether something will still happen by itself."""
    jobs: Mapping[str, JobStatus] = field(default_factory=dict)
    """By stage instance; empty where there is no scheduler."""
    by_id: Mapping[str, JobStatus] = field(default_factory=dict)
    """Of all jobs, workers and sentinels included, by the scheduler's id."""
    problem: str = ""
    """Why the scheduler did not answer; what it said last stands for it."""
    has_scheduler: bool = False
    """Whether jobs of a scheduler execute the run, and not one supervisor."""
    look_every_s: float = 1.0
    """How often to ask again, in seconds."""

    @property
    def has_jobs_left(self) -> bool:
        """Whether a job is queued or running, be it of use or not."""
        return any(not status.state.is_final for status in self.by_id.values())

    def expects(self, instance: str) -> bool:
        """Whether somebody works on the stage instance, or will."""
        if instance not in self.jobs:
            return self.is_alive and not self.jobs
        return not self.jobs[instance].state.is_final


def run_status(run: RunFolder, store: Store, observed: Observed) -> dict[str, Any]:
    """The document of ``status RUN --json``."""
    return {**run_progress(run, store, observed), "goodput": run_goodput(run, observed)}


def run_progress(run: RunFolder, store: Store, observed: Observed) -> dict[str, Any]:
    """The document without its goodput, which reads every step line: for asking each second."""
    plan, cluster = run.plan(), run.cluster()
    found = store.find({i.id: f"{i.stage}/{i.key}" for i in plan.instances})
    stages = [
        _stage(i, found[i.id], run.attempts(i.leader), observed, _shards_total(i, found))
        for i in plan.instances
    ]
    return {
        "run": run.name,
        "state": _run_state(run, observed, stages),
        "backend": cluster.backend,
        "problem": observed.problem,
        "stages": stages,
    }


def run_goodput(run: RunFolder, observed: Observed) -> dict[str, float | None]:
    """Where the run's wall-clock time went, from its submission on."""
    return goodput(
        {i.id: run.attempts(i.id) for i in run.plan().leaders},
        submitted_at=run.submitted_at(),
        is_alive=observed.is_alive,
    )


def _checkpoint_interval(attempts: Sequence[AttemptFolder]) -> dict[str, float] | None:
    """The newest choice of the time between checkpoints, with what it was chosen from."""
    events = [e for a in attempts[-1:] for e in a.events() if e["kind"] == "checkpoint_interval"]
    return {k: v for k, v in events[-1].items() if k not in ("at", "kind")} if events else None


def _stage(
    instance: Instance,
    found: Found,
    attempts: Sequence[AttemptFolder],
    observed: Observed,
    shards_total: int | None,
) -> dict[str, Any]:
    rows = [_attempt(a, observed.jobs.get(instance.leader), observed) for a in attempts]
    progress = attempts[-1].progress if attempts and not found.complete else {}
    job = observed.jobs.get(instance.leader)
    return {
        "id": instance.id,
        "name": instance.stage,
        "node": instance.node,
        "variant": ", ".join(instance.variants),
        "key": instance.key,
        "state": _stage_state(found, rows, job, expected=observed.expects(instance.leader)),
        "reused": found.complete and not rows,
        "job": job.detail if job else "",
        "shards_done": (shards_total if found.complete else found.shards_done)
        if shards_total
        else None,
        "shards_total": shards_total,
        "step": _step(instance, found, progress),
        "steps": instance.steps,
        "checkpoint_interval": _checkpoint_interval(attempts) if instance.steps else None,
        "progress": progress,
        "attempts": rows,
    }


def _step(instance: Instance, found: Found, progress: Mapping[str, Any]) -> int | None:
    if instance.steps is None:
        return None
    if found.complete:
        return instance.steps
    live = int(progress["done"]) if progress.get("unit") == "steps" else 0
    return max(live, found.step)


def _shards_total(instance: Instance, found: Mapping[str, Found]) -> int | None:
    if BY_NAME[instance.stage].counts != "shards":
        return None
    total = found[instance.needs["corpus"]].facts.get("num_shards")
    return int(total) if total is not None else None


def _stage_state(
    found: Found, rows: Sequence[Mapping[str, Any]], job: JobStatus | None, *, expected: bool
) -> str:
    if found.complete:
        return "succeeded"
    if job and job.state is JobState.CANCELLED:
        return "cancelled"
    if not rows:
        return "queued" if expected else "failed" if job else "pending"
    last = rows[-1]
    if last["state"] in ("running", "cancelled"):
        return str(last["state"])
    return "queued" if expected and last["action"] != "stop" else "failed"


def _attempt(attempt: AttemptFolder, job: JobStatus | None, observed: Observed) -> dict[str, Any]:
    started, end = attempt.started, attempt.end
    if end is None:  # whoever could have written the end is gone, or still at work
        end = _presumed(job, is_alive=observed.is_alive)
    return {
        "n": attempt.number,
        "state": end["state"],
        "cause": end.get("cause", ""),
        "action": end.get("action", ""),
        "reason": end.get("reason", ""),
        "started_at": started["started_at"],
        "ended_at": end.get("ended_at"),
        "node": end.get("node", "") or started.get("node", ""),
        "log": f"{attempt.storage.url}/{DRIVER_LOG}",
    }


def _presumed(job: JobStatus | None, *, is_alive: bool) -> dict[str, str]:
    """The state of an attempt that has not said how it ended."""
    if job is None:
        return {"state": "running"} if is_alive else {"state": "failed", "cause": "node_lost"}
    if job.state is JobState.RUNNING:
        return {"state": "running"}
    if job.state.is_final:
        return {"state": "failed", "cause": job.cause or Cause.NODE_LOST}
    return {"state": "unknown"}  # its job is in the queue again, or the scheduler knows nothing


def _run_state(run: RunFolder, observed: Observed, stages: Sequence[Mapping[str, Any]]) -> str:
    states = [s["state"] for s in stages]
    if all(s == "succeeded" for s in states):
        return "running" if observed.is_alive and not observed.jobs else "succeeded"
    if observed.is_alive:
        return "running" if any(s["attempts"] for s in stages) else "queued"
    if observed.jobs:
        return "failed" if "failed" in states or "cancelled" not in states else "cancelled"
    supervisors = run.supervisors()
    if not supervisors:
        return "pending"
    end = supervisors[-1].end
    return "cancelled" if end and end["state"] == "cancelled" else "failed"


def run_cause(run: RunFolder) -> str:
    """Why a run stopped short: ``node_lost`` when its supervisor died without a word."""
    supervisors = run.supervisors()
    if not supervisors or run.live_supervisor():
        return ""
    end = supervisors[-1].end
    return str(end.get("cause", "")) if end else "node_lost"
