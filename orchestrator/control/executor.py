"""Who executes a run while nobody looks: a supervisor on this machine, or a scheduler's jobs.

A Protocol, kept by one package for each backend, and the choice between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.backends.base import JobStatus
from orchestrator.errors import RequestError
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store
from orchestrator.spec.cluster import Cluster


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

    @property
    def has_jobs_left(self) -> bool:
        """Whether a job is queued or running, be it of use or not."""
        return any(not status.state.is_final for status in self.by_id.values())

    def expects(self, instance: str) -> bool:
        """Whether somebody works on the stage instance, or will."""
        if instance not in self.jobs:
            return self.is_alive and not self.jobs
        return not self.jobs[instance].state.is_final


class Executor(Protocol):
    """Sees to it that a run goes on."""

    def ensure(self, run: RunFolder, store: Store) -> str:
        """Start what is missing; what was done, in words. Raises BackendError, RequestError."""
        ...

    def observe(self, runs: Sequence[RunFolder]) -> dict[str, Observed]:
        """How each run stands, by name, from one look."""
        ...

    def cancel(self, run: RunFolder, stage: str | None) -> None:
        """Stop the run, or one stage; returns when that is done. Raises RunFailedError."""
        ...


def executor_of(cluster: Cluster) -> Executor:
    """The one for this cluster's backend."""
    if cluster.backend == "slurm":
        from orchestrator.control.slurm.executor import SlurmExecutor

        return SlurmExecutor()
    from orchestrator.control.local.executor import LocalExecutor

    return LocalExecutor()


def require_executor(cluster: Cluster) -> None:
    """Raises RequestError when nothing here can carry a run on this backend."""
    if cluster.backend not in ("local", "slurm"):
        raise RequestError(
            f"cluster: backend: {cluster.backend!r} can be planned for but not submitted to; "
            "use local or slurm"
        )


def observe(run: RunFolder) -> Observed:
    """How one run stands."""
    return executor_of(run.cluster()).observe([run])[run.name]


def observe_all(runs: Sequence[RunFolder]) -> dict[str, Observed]:
    """How many runs stand, each scheduler asked once about all of its own."""
    by_backend: dict[str, list[RunFolder]] = {}
    for run in runs:
        by_backend.setdefault(run.cluster().backend, []).append(run)
    found: dict[str, Observed] = {}
    for group in by_backend.values():
        found |= executor_of(group[0].cluster()).observe(group)
    return found
