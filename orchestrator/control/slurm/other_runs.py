"""Whether another run works on what this run's job is there for, and when to come back.

In: the leases of the stage's artifacts. Out: who holds them, and what the scheduler is told so that
this run's job starts again when that one has ended, instead of holding its nodes meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from orchestrator.backends.base import JobRef
from orchestrator.backends.slurm import NAME, SlurmBackend
from orchestrator.backends.slurm_allocation import Allocation
from orchestrator.errors import OrchestratorError
from orchestrator.ledger.lease import Lease, Watch
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store
from orchestrator.plan.planner import Instance

LATER = "StartTime=now+5minutes"
"""When to look again at work that no job of this cluster does."""


@dataclass
class OtherRuns:
    """What other runs do on the instances of one job, as the job's process sees it."""

    store: Store
    run: RunFolder
    members: Sequence[Instance]
    are_waited_for: bool = False
    """Whether this job is to come back when they have ended."""
    _since: float | None = None
    """Monotonic time since which another run has held a key without a break."""
    _watch: Watch = field(default_factory=Watch)

    def will_take_long(self) -> bool:
        """Whether another run has held a key for longer than the lease of a dead one lasts."""
        if self.holder() is None:
            self._since, self.are_waited_for = None, False
            return False
        self._since = self._since or time.monotonic()
        waited_s = time.monotonic() - self._since
        self.are_waited_for = waited_s > self.run.cluster().retry.heartbeat_timeout_s
        return self.are_waited_for

    def terms(self, allocation: Allocation) -> str:
        """When to be started again, in the words of ``scontrol update``.

        After the job that does the work, where this cluster has it in the queue; else in a while.
        """
        lease = self.holder()
        started = _attempt_of(self.store, lease) if lease else {}
        job_id = started.get("job", "") if started.get("cluster") == allocation.cluster else ""
        return f"Dependency=afterany:{job_id}" if job_id and _is_queued(job_id) else LATER

    def holder(self) -> Lease | None:
        """The live lease of another run on one of the instances."""
        timeout_s = self.run.cluster().retry.heartbeat_timeout_s
        folders = [self.store.artifact(m.stage, m.key).storage for m in self.members]
        live = [self._watch.live(folder, timeout_s) for folder in folders]
        return next((lease for lease in live if lease and _run_of(lease) != self.run.name), None)


def _run_of(lease: Lease) -> str:
    """The run of a holder, ``<run>/<instance>/<attempt>``."""
    return lease.holder.partition("/")[0]


def _attempt_of(store: Store, lease: Lease) -> dict[str, Any]:
    """What was noted with the attempt that holds a lease; nothing where that cannot be read."""
    run, _, rest = lease.holder.partition("/")
    instance, _, number = rest.partition("/")
    with suppress(OrchestratorError, OSError, ValueError):
        attempts = RunFolder(store.run_storage(run)).attempts(instance)
        return next((a.started for a in attempts if a.number == int(number)), {})
    return {}


def _is_queued(job_id: str) -> bool:
    """Whether the scheduler has a job that has not ended."""
    with suppress(OrchestratorError):
        rows = SlurmBackend().queue([JobRef(backend=NAME, id=job_id)])
        return any(not row.state.is_final for group in rows.values() for row in group)
    return False
