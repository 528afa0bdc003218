"""What executes a run on one kind of backend: its base class, and the registry of what derives.

A backend is one package beside this file, one line of `EXECUTORS`, and its options in `spec`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from orchestrator.backends.base import Shape
from orchestrator.control.store_patience import waited_for
from orchestrator.errors import RequestError
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import Observed
from orchestrator.ledger.store import Store
from orchestrator.plan.planner import Plan, Variant
from orchestrator.spec.cluster import Cluster
from orchestrator.spec.recipe import Recipe

EXECUTORS: dict[str, str] = {
    "local": "orchestrator.control.local.executor:LocalExecutor",
    "slurm": "orchestrator.control.slurm.executor:SlurmExecutor",
    "ray": "orchestrator.control.ray.executor:RayExecutor",
}
"""Backend to the module and class of its executor, imported when it is first asked for. Other
backends can be planned for and nothing else."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A recipe on a cluster, understood and planned."""

    recipe: Recipe
    recipe_file: Path
    cluster: Cluster
    cluster_file: Path
    chosen: str
    """The cluster file and why it is this one, in words."""
    variants: tuple[Variant, ...]
    store: Store
    plan: Plan

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """Those of the variants."""
        return tuple(variant.recipe for variant in self.variants)


@dataclass(frozen=True, kw_only=True)
class Started:
    """What starting a run came to."""

    outcome: Literal["done", "running", "started", "hopeless"]
    """Everything is complete; all that is left is under way; something was started; what is left
    must not be started."""
    num_jobs: int = 0
    """Jobs that were handed to a scheduler."""
    remarks: tuple[str, ...] = ()
    """What whoever started it should know, one line each."""


@dataclass(frozen=True)
class Check:
    """One question of `orchestrator doctor`, its answer, and the remedy when that is bad."""

    name: str
    passed: bool
    detail: str
    is_optional: bool = False
    """Only some recipes need it."""


@dataclass(frozen=True, kw_only=True)
class JobPreview:
    """A job that a scheduler would be given."""

    name: str
    instance: str
    """The stage instance it works on; empty for a job that watches others."""
    shape: Shape
    """What it asks for, after all options."""
    queue: str
    """Where it would wait; empty for the site's default."""
    script: str
    """Exactly what the scheduler would be given."""


@dataclass(frozen=True, kw_only=True)
class NodeCount:
    """The nodes of one type in a cluster that grows and shrinks."""

    type: str
    alive: int = 0
    pending: int = 0
    """Those that are on their way."""
    problems: tuple[str, ...] = ()
    """Why others did not come lately, in the cloud's words."""


@dataclass(frozen=True, kw_only=True)
class ClusterState:
    """How a cluster stands that is started and ended from here."""

    head: str
    """Where its head answers, in words."""
    nodes: tuple[NodeCount, ...]


class LaunchedCluster(Protocol):
    """What `orchestrator cluster` acts on. All may raise RequestError or BackendError."""

    up_ends_runs: bool
    """Whether `up` ends the runs of a cluster that is there already."""

    def price(self) -> str:
        """What it costs an hour, in words."""

    def up(self, say: Callable[[str], None]) -> None:
        """Start it, or change it into what its file says; ``say`` gets what that prints."""

    def down(self, say: Callable[[str], None]) -> None:
        """End all of its nodes."""

    def runs(self) -> Sequence[str]:
        """Names of the runs that its head supervises."""

    def state(self) -> ClusterState:
        """How it stands."""


class Executor:
    """Executes runs on one kind of backend; the base stands for what is only planned for."""

    supervises_elsewhere = False
    """Whether what a run looks up in the environment is that of another machine than this."""

    def start(self, run: RunFolder, store: Store) -> Started:  # noqa: ARG002 (never started)
        """Start what is missing. Raises BackendError, RequestError."""
        raise _not_submittable(run.cluster())

    def observe(self, runs: Sequence[RunFolder]) -> dict[str, Observed]:
        """How each run stands, by name, from one look; by default whether a supervisor lives."""
        supervisors = {run.name: run.live_supervisor() for run in runs}
        return {
            name: Observed(is_alive=bool(s), problem=waited_for(s.storage.url) if s else "")
            for name, s in supervisors.items()
        }

    def cancel(self, run: RunFolder, stage: str | None) -> None:  # noqa: ARG002 (never started)
        """Stop the run, or one stage; returns when that is done. Raises RunFailedError."""
        raise _not_submittable(run.cluster())

    def problems(self, request: Request) -> Iterable[str]:  # noqa: ARG002 (asks for nothing)
        """What keeps this backend from running the request, one line each."""
        return ()

    def too_large(
        self,
        plan: Plan,  # noqa: ARG002 (there is nothing here to hold it)
        cluster: Cluster,  # noqa: ARG002 (as above)
        where: str,  # noqa: ARG002 (as above)
    ) -> Iterable[str]:
        """Which of the plan's stages nothing here could ever hold, one line each.

        ``where`` is the cluster file's name.
        """
        return ()

    def remarks(
        self,
        plan: Plan,  # noqa: ARG002 (nothing to say)
        cluster: Cluster,  # noqa: ARG002 (as above)
    ) -> Iterable[str]:
        """What to know before the plan's stages are started here, one line each."""
        return ()

    def checks(self, cluster: Cluster) -> Iterable[Check]:  # noqa: ARG002 (asks for nothing)
        """What `orchestrator doctor` checks of this backend."""
        return ()

    def launched(self, cluster: Cluster, where: str) -> LaunchedCluster:
        """The cluster as something that is started and ended from here; ``where`` is its file.

        Raises RequestError for one that is not.
        """
        raise RequestError(
            f"{where}: backend: {cluster.backend!r} has no cluster that is started from here; see "
            "cluster_configs/ray-aws.yaml"
        )

    def require_head(self, run: RunFolder) -> None:
        """Raises RequestError where `kill_head` cannot be called for a run from here."""
        raise RequestError(f"{run.name}: --kill head is for a Ray cluster; use --kill node")

    def kill_head(self, run: RunFolder) -> None:
        """End the head of the cluster that a run is on, as a drill. Raises RequestError."""
        self.require_head(run)

    def preview(self, request: Request) -> Sequence[JobPreview]:  # noqa: ARG002 (no scheduler)
        """The jobs that a scheduler would be given now; none where there is no scheduler."""
        return ()


def executor_of(cluster: Cluster) -> Executor:
    """The executor of the cluster's backend."""
    if cluster.backend not in EXECUTORS:
        return Executor()
    module, _, name = EXECUTORS[cluster.backend].partition(":")
    executor: Executor = getattr(importlib.import_module(module), name)()
    return executor


def require_submittable(cluster: Cluster) -> None:
    """Raises RequestError when runs cannot be started on the cluster's backend."""
    if cluster.backend not in EXECUTORS:
        raise _not_submittable(cluster)


def observe(run: RunFolder) -> Observed:
    """How one run stands."""
    return executor_of(run.cluster()).observe([run])[run.name]


def observe_all(runs: Sequence[RunFolder]) -> dict[str, Observed]:
    """How many runs stand, each backend asked once about all of its own."""
    by_backend: dict[str, list[RunFolder]] = {}
    for run in runs:
        by_backend.setdefault(run.cluster().backend, []).append(run)
    found: dict[str, Observed] = {}
    for group in by_backend.values():
        found |= executor_of(group[0].cluster()).observe(group)
    return found


def _not_submittable(cluster: Cluster) -> RequestError:
    return RequestError(
        f"cluster: backend: {cluster.backend!r} can be planned for but not submitted to; "
        f"use {', '.join(EXECUTORS)}"
    )
