"""A backend without processes, for tests and for trying out policies: it plays a script.

The script says how each submission of a job ends; ``effect`` is called when one starts, so that a
test can let the job's files appear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from orchestrator.backends.base import Job, JobRef
from orchestrator.ledger.status import JobState, JobStatus

DONE = JobStatus(state=JobState.SUCCEEDED, exit_code=0, node="fake")


class FakeBackend:
    """Every job runs for one poll, then ends as the script says; beyond the script it succeeds."""

    def __init__(
        self,
        script: Mapping[str, Sequence[JobStatus]] | None = None,
        effect: Callable[[Job, JobStatus], None] | None = None,
    ) -> None:
        self.jobs: list[Job] = []
        self._script = {name: list(ends) for name, ends in (script or {}).items()}
        self._effect = effect
        self._ends: dict[JobRef, JobStatus] = {}
        self._polls: dict[JobRef, int] = {}

    def submit(self, job: Job, after: Sequence[JobRef] = ()) -> JobRef:  # noqa: ARG002 (order is the caller's here)
        """Remember the job and decide how it will end."""
        ref = JobRef(backend="fake", id=str(len(self.jobs)))
        self.jobs.append(job)
        ends = self._script.get(job.name)
        self._ends[ref] = ends.pop(0) if ends else DONE
        if self._effect:
            self._effect(job, self._ends[ref])
        return ref

    def poll(self, refs: Sequence[JobRef]) -> dict[JobRef, JobStatus]:
        """Running at the first question, ended at the second."""
        for ref in refs:
            self._polls[ref] = self._polls.get(ref, 0) + 1
        running = JobStatus(state=JobState.RUNNING, node="fake")
        return {ref: self._ends[ref] if self._polls[ref] > 1 else running for ref in refs}

    def cancel(self, refs: Sequence[JobRef]) -> None:
        """End the jobs as cancelled."""
        for ref in refs:
            self._ends[ref] = JobStatus(state=JobState.CANCELLED, exit_code=-15, node="fake")
