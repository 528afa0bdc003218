"""Who executes a run while nobody looks: a supervisor on this machine, or a scheduler's jobs.

A Protocol, kept by one package for each backend, and the choice between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from orchestrator.errors import RequestError
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import Observed
from orchestrator.ledger.store import Store
from orchestrator.spec.cluster import Cluster


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
