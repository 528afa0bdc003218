"""What executors have in common whose runs have one supervisor, which is a job by itself.

It announces itself in the run's folder, works through the plan, and obeys what is asked there.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from orchestrator.backends.base import Backend, Job, JobRef
from orchestrator.control.executor import Executor, Started
from orchestrator.errors import BackendError, RunFailedError
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import JobState
from orchestrator.ledger.store import Store
from orchestrator.spec.cluster import Cluster

CANCEL_SLACK_S = 60.0
"""Added to the time that jobs get to save."""
_GOES_ON = (JobState.QUEUED, JobState.RUNNING)


class SupervisedExecutor(Executor):
    """Starts the supervisor, and asks it to stop."""

    def __init__(
        self,
        start_timeout_s: float,
        cancel_slack_s: float = CANCEL_SLACK_S,
        look_every_s: float = 0.05,
    ) -> None:
        self._start_timeout_s, self._cancel_slack_s = start_timeout_s, cancel_slack_s
        self._look_every_s = look_every_s

    @abstractmethod
    def jobs_of(self, cluster: Cluster) -> AbstractContextManager[Backend]:
        """What starts supervisors, while it can be reached. Raises BackendError."""

    @abstractmethod
    def supervisor_job(self, run: RunFolder, store: Store) -> Job:
        """The job of a run's supervisor, which outlives whoever submits it."""

    def handed_over(self, backend: Backend, job: Job) -> JobRef:
        """The supervisor's job, once the backend has it."""
        return backend.submit(job)

    @abstractmethod
    def last_words(self, backend: Backend, ref: JobRef, job: Job) -> tuple[str, str]:
        """The last line that a supervisor printed, and where the others are."""

    def start(self, run: RunFolder, store: Store) -> Started:
        """Start a supervisor unless one is at work or all is done.

        Returns once it has announced itself, so that `status` is true from then on. Raises
        BackendError.
        """
        # A dead supervisor's lease on another machine is watched for as long before it is taken.
        watch_s = run.cluster().retry.heartbeat_timeout_s
        deadline = time.monotonic() + self._start_timeout_s + watch_s
        before = len(run.supervisors())
        while run.supervising() and not run.live_supervisor():
            if time.monotonic() > deadline:  # one that begins or ends takes a moment
                break
            time.sleep(self._look_every_s)
        if run.live_supervisor():
            return Started(outcome="running")
        if before and store.has(*run.plan().instances):
            return Started(outcome="done")
        with self.jobs_of(run.cluster()) as backend, _left_alone():
            job = self.supervisor_job(run, store)
            ref = self.handed_over(backend, job)
            while len(run.supervisors()) == before:
                has_ended = backend.poll([ref])[ref].state not in _GOES_ON
                # One that another's lease sent away ends at once; that other announces itself, or
                # ends.
                is_waiting = not has_ended or run.supervising() or len(run.supervisors()) > before
                if not is_waiting or time.monotonic() > deadline:
                    words, where = self.last_words(backend, ref, job)
                    said = f" ({words})" if words else ""
                    raise BackendError(f"{run.name}: no supervisor started{said}; see {where}")
                time.sleep(self._look_every_s)
        return Started(outcome="started")

    def cancel(self, run: RunFolder, stage: str | None) -> None:
        """Ask the supervisor, and wait until it has done so. Raises RunFailedError."""
        number = run.request_cancel(stage)
        timeout_s = run.cluster().retry.notice_s + self._cancel_slack_s
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not run.live_supervisor():
                return
            if stage and "obeyed_at" in run.cancel_requests()[number - 1]:
                return
            time.sleep(0.2)
        raise RunFailedError(
            f"{run.name}: still not stopped after {timeout_s:.0f} s; see `orchestrator status`"
        )


@contextmanager
def _left_alone() -> Iterator[None]:
    """Whoever stops waiting stops nothing else."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the run goes on: its supervisor begins to work") from None


def last_line(text: str) -> str:
    """The last line that says something; empty where none does."""
    return next((line.strip() for line in reversed(text.split("\n")) if line.strip()), "")
