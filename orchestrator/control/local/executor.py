"""A run on this machine: one detached supervisor carries it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from orchestrator.backends.local import LocalBackend
from orchestrator.control.job import supervisor_job
from orchestrator.errors import BackendError, RunFailedError
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import Observed
from orchestrator.ledger.store import Store

START_TIMEOUT_S = 30.0
CANCEL_SLACK_S = 60.0
"""Added to the time that jobs get to save."""


class LocalExecutor:
    """Starts the supervisor, and asks it to stop."""

    def ensure(self, run: RunFolder, store: Store) -> str:
        """Start a supervisor unless one is at work or all is done."""
        if run.live_supervisor():
            return "already running"
        if run.supervisors() and store.has(*run.plan().instances):
            return "everything is done"
        before = len(run.supervisors())
        job = supervisor_job(run, store, run.cluster())
        LocalBackend().submit(job)
        _wait_for_supervisor(run, before, job.log)
        return "supervisor started"

    def observe(self, runs: Sequence[RunFolder]) -> dict[str, Observed]:
        """Whether each run's supervisor lives."""
        return {run.name: Observed(is_alive=run.live_supervisor() is not None) for run in runs}

    def cancel(self, run: RunFolder, stage: str | None) -> None:
        """Ask the supervisor, and wait until it has done so."""
        run.request_cancel(stage)
        timeout_s = run.cluster().retry.notice_s + CANCEL_SLACK_S
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not run.live_supervisor() or (stage and _has_stopped(run, stage)):
                return
            time.sleep(0.2)
        raise RunFailedError(
            f"{run.name}: still not stopped after {timeout_s:.0f} s; see `orchestrator status`"
        )


def _has_stopped(run: RunFolder, stage: str) -> bool:
    chosen = run.plan().chosen(stage)
    return all(a.end is not None for i in chosen for a in run.attempts(i.leader))


def _wait_for_supervisor(run: RunFolder, before: int, log: Path) -> None:
    """Return once a supervisor has announced itself, so that `status` is true from then on."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if len(run.supervisors()) > before:
            return
        time.sleep(0.05)
    tail = log.read_text(errors="replace")[-500:] if log.exists() else ""
    raise BackendError(f"{run.name}: the supervisor did not start; see {log}\n{tail}")
