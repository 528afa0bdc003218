"""The seam to the world: submit a job, ask about jobs, cancel jobs.

Everything else a backend knows stays behind it. A backend that answers ``unknown`` means "not yet".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from orchestrator.spec.cluster import Resources


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
class Job:
    """What is asked of the backend, exactly as it is sent."""

    name: str
    argv: tuple[str, ...]
    log: Path
    """Local file that gets stdout and stderr."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of the backend's processes."""
    resources: Resources = field(default_factory=Resources)
    detached: bool = False
    """Outlives whoever submits it, as a run's supervisor must."""


@dataclass(frozen=True, kw_only=True)
class JobRef:
    """The scheduler's name of a job."""

    backend: str
    id: str


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """What the backend said."""

    state: JobState
    exit_code: int | None = None
    """The process's exit code; negative when a signal ended it; None when not known."""
    node: str = ""
    detail: str = ""


class Backend(Protocol):
    """Three verbs."""

    def submit(self, job: Job, after: Sequence[JobRef] = ()) -> JobRef:
        """Hand a job over, to start once all of ``after`` have succeeded. Raises BackendError."""
        ...

    def poll(self, refs: Sequence[JobRef]) -> dict[JobRef, JobStatus]:
        """The status of every job, from one question. Raises BackendError."""
        ...

    def cancel(self, refs: Sequence[JobRef]) -> None:
        """Ask jobs to end: a warning first, then the end. Raises BackendError."""
        ...
