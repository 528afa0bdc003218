"""The seam to the world: submit a job, ask about jobs, cancel jobs.

Everything else a backend knows stays behind it. A backend that answers ``unknown`` means "not yet".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from orchestrator.ledger.status import JobStatus

Start = Literal["succeeded", "started", "failed"]
"""Which event of the jobs before it a job waits for."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The resources a scheduler gives to a job, on each of its nodes."""

    num_nodes: int = 1
    """Nodes that start together, at most; the command runs once on each."""
    min_nodes: int | None = None
    """The fewest of them that will do; all of them when absent."""
    array: int = 0
    """How many such jobs, each by itself; 0: one job that is no array."""
    cpus: int = 1
    gpus: int = 0
    mem_gb: float = 4.0
    walltime_min: int = 240
    warn_s: int = 90
    """How long before the end of its walltime the job is warned, in seconds."""

    @property
    def fewest_nodes(self) -> int:
        """Nodes without which it does not start."""
        return self.num_nodes if self.min_nodes is None else self.min_nodes

    @property
    def is_fixed(self) -> bool:
        """Whether the number of nodes is known beforehand."""
        return self.fewest_nodes == self.num_nodes

    @property
    def nodes(self) -> str:
        """How many nodes: ``4``, or ``2-4``."""
        return str(self.num_nodes) if self.is_fixed else f"{self.fewest_nodes}-{self.num_nodes}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked of the backend, exactly as it is sent."""

    name: str
    argv: tuple[str, ...]
    log: Path
    """Local file that gets stdout and stderr."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of the backend's processes."""
    detached: bool = False
    """Outlives whoever submits it, as a run's supervisor must."""
    shape: Shape = field(default_factory=Shape)
    """What it asks of a scheduler; a backend without one takes no notice, as of what follows."""
    options: object = None
    """What only its backend understands."""
    tag: str = ""
    """Recognises the job in the scheduler's books, so that it is never submitted twice."""
    start: Start = "succeeded"
    """It starts once all of what it comes after have succeeded, or have started, or once one of
    them has failed."""


@dataclass(frozen=True, kw_only=True)
class JobRef:
    """The scheduler's name of a job."""

    backend: str
    id: str
    submitted_at: float = 0.0
    """Seconds since the epoch: schedulers use their ids again."""


class Backend(Protocol):
    """Three verbs."""

    def submit(self, job: Job, after: Sequence[JobRef] = ()) -> JobRef:
        """Hand a job over, to start when ``after`` are as it wants them. Raises BackendError."""
        ...

    def poll(self, refs: Sequence[JobRef]) -> dict[JobRef, JobStatus]:
        """The status of every job, from one question. Raises BackendError."""
        ...

    def cancel(self, refs: Sequence[JobRef]) -> None:
        """Ask jobs to end: a warning first, then the end. Raises BackendError."""
        ...


def guarded(setup: Sequence[str]) -> tuple[str, ...]:
    """Shell lines of a cluster file, the first of which that fails ends the shell and is named."""
    if not setup:
        return ()
    named = "trap 'echo \"error: environment.setup: failed: $BASH_COMMAND\" >&2' EXIT"
    return ("set -e", named, *setup, "trap - EXIT", "set +e")
