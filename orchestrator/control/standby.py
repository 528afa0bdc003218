"""The process that forks a node's training ranks (`jobs.training.standby`), as its parent sees it.

It has what ranks import in memory, so that a training that is started again is back seconds sooner.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from orchestrator.backends.base import Job, JobRef
from orchestrator.backends.local import LocalBackend
from orchestrator.control.code_snapshot import code_env
from orchestrator.control.job import module_argv
from orchestrator.ledger.run import STANDBY, RunFolder
from orchestrator.spec.cluster import Cluster

MODULE = "jobs.training.standby"


class Standby:
    """One of a run on this node; it ends with this process at the latest."""

    def __init__(self, run: RunFolder, log: Path, cluster: Cluster | None = None) -> None:
        """``cluster``: whose environment is set up for it, as `job.module_argv` takes it."""
        self._run, self._log, self._cluster = run, log, cluster
        self._backend = LocalBackend(grace_s=0.0)  # it has nothing to save
        self._ref: JobRef | None = None
        self._address = ""

    def env(self) -> dict[str, str]:
        """What tells ranks of it; it is started where none runs."""
        if not self._runs():
            self._address = f"orchestrator-{secrets.token_hex(16)}"
            self._ref = self._backend.submit(self._job())
        return {STANDBY: self._address}

    def stop(self) -> None:
        """End it, and what it has forked."""
        if self._ref:
            self._backend.cancel([self._ref])
            self._ref = None

    def _runs(self) -> bool:
        return (
            self._ref is not None and not self._backend.poll([self._ref])[self._ref].state.is_final
        )

    def _job(self) -> Job:
        return Job(
            name="standby",
            argv=module_argv(self._cluster, MODULE),
            log=self._log,
            env={**code_env(self._run), STANDBY: self._address},
        )
