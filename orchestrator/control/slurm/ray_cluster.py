"""A data stage's elastic Ray cluster, from where its head is.

The head's job publishes its Ray's address for the array of workers, asks Slurm for others in place
of those that have left the queue for good, and cancels what is left of them at the end. The
worker's side is `ray_worker`.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from orchestrator.backends.ray_session import RayHead, RaySession
from orchestrator.backends.slurm import SlurmBackend
from orchestrator.backends.slurm_allocation import Allocation
from orchestrator.control.code_snapshot import code_env
from orchestrator.control.slurm.executor import SlurmExecutor
from orchestrator.control.slurm.job_states import note_cancelled, refs_of
from orchestrator.errors import BackendError, OrchestratorError, RequestError
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.store import Store

LOOK_EVERY_S = 120.0
MAX_IN_VAIN = 3
"""After so many replacements without a shard done, something else is wrong with the workers."""
_HEAD = "head.json"
"""In a stage's folder: where its head is, written anew when that moves; workers look again."""

log = logging.getLogger(__name__)


class RayCluster:
    """The cluster of one stage while its head has this allocation."""

    def __init__(
        self,
        store: Store,
        run: RunFolder,
        instance: str,
        allocation: Allocation,
        look_every_s: float = LOOK_EVERY_S,
        start_session: Callable[..., RaySession] = RaySession,
    ) -> None:
        self._store, self._run, self._instance = store, run, instance
        self._allocation = allocation
        self._look_every_s, self._start_session = look_every_s, start_session
        self._began_at = self._looked_at = time.monotonic()
        self._head: RaySession | None = None
        self._progress, self._in_vain = -1.0, 0
        """Work done when workers were last replaced, and how often that brought none."""
        self._avoided: set[str] = set()

    def start_head(self) -> RaySession:
        """Start the Ray head and publish its address."""
        allocation, restart_id = self._allocation, self._allocation.restart_id
        self._head = self._start_session(
            run=f"{self._run.storage.url}/{self._instance}",
            num_cpus=0,
            address=allocation.leader_address,
            log=Path(self._run.allocation(self._instance, restart_id).url, "ray.log"),
            code_env=code_env(self._run),
        )
        publish_head(self._run.stage(self._instance), self._head.head)
        if self._is_late:
            self._ask_for_workers()
        return self._head

    def withdraw(self) -> None:
        """Remove the head's address: there is none here any more."""
        head_path(self._run.stage(self._instance)).unlink(missing_ok=True)

    def look(self) -> None:
        """Now and then replace workers that have left the queue, while that helps.

        Without a head, because another run works on the stage, they are right to leave.
        """
        if time.monotonic() - self._looked_at < self._look_every_s:
            return
        self._looked_at = time.monotonic()
        if self._head is None or not self._head.is_alive():
            return
        self._leave_failing_nodes()
        progress = self._store.progress(*self._run.plan().group(self._instance))
        if progress == self._progress and self._in_vain >= MAX_IN_VAIN:
            return
        if self._ask_for_workers():
            self._in_vain = self._in_vain + 1 if progress == self._progress else 0
            self._progress = progress

    def _leave_failing_nodes(self) -> None:
        """Take workers off nodes on which the driver has seen them die alone."""
        attempts = self._run.attempts(self._instance)[-1:]
        found = {node for attempt in attempts for node in attempt.failing_nodes} - self._avoided
        if not found:
            return
        log.info("workers die on %s: kept off from now on", ", ".join(sorted(found)))
        try:
            SlurmExecutor().avoid_nodes(self._run, self._instance, sorted(found))
        except OrchestratorError as error:
            log.warning("workers: %s", error)
            return
        self._avoided |= found

    @property
    def _is_late(self) -> bool:
        """Whether workers may have given their nodes back, because there was no head."""
        waited_s = time.monotonic() - self._began_at
        idle_timeout_s = self._run.cluster().slurm.idle_timeout_s
        return self._allocation.restarts > 0 or waited_s > idle_timeout_s / 2

    def _ask_for_workers(self) -> int:
        """Replace those that are not in the queue any more; how many."""
        try:
            count = SlurmExecutor().replace_workers(self._run, self._store, self._instance)
        except OrchestratorError as error:
            log.warning("workers: %s", error)
            return 0
        if count:
            log.info("%d workers asked for in place of those that left the queue", count)
        return count


def dismiss_workers(run: RunFolder, instance: str) -> None:
    """Cancel the array: nothing is left for it to do.

    Where that fails the workers end by themselves, once they see no head or the stage complete.
    """
    try:
        refs = refs_of(run, "workers", instance)
        SlurmBackend().cancel(refs)
        note_cancelled(run, refs, "not needed any more")
    except (BackendError, OSError) as error:
        log.warning("workers: %s", error)


def publish_head(stage: Storage, head: RayHead) -> None:
    """Say where the head of a stage is, readable by this user alone (mode 0600)."""
    path = head_path(stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{_HEAD}-{secrets.token_hex(4)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(head), file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def published_head(stage: Storage) -> RayHead | None:
    """Where the head is; None while there is none."""
    try:
        return RayHead(**json.loads(head_path(stage).read_text()))
    except FileNotFoundError:
        return None


def head_path(stage: Storage) -> Path:
    """The file that says where a stage's head is. Raises RequestError on an object store."""
    if stage.local_root is None:
        raise RequestError(
            f"{stage.url}: workers find their head in a store that is a path; use one"
        )
    return stage.local_root / _HEAD
