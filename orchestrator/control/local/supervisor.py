"""The supervisor of a run on this machine; `LocalExecutor` starts it by ``python -m``, detached."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from orchestrator.backends.ray_session import RaySession, Session
from orchestrator.control.code_snapshot import code_env
from orchestrator.control.run_logs import RunLogs
from orchestrator.control.standby import Standby
from orchestrator.control.supervisor_process import Surroundings, supervise
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage


def of_this_machine(run: RunFolder, own: Storage, logs: RunLogs) -> Surroundings:
    """A Ray session of its own, and what forks ranks."""
    cluster = run.cluster()
    num_cpus = cluster.cpus or os.cpu_count() or 1

    def start_ray() -> Session:
        log_of_ray = logs.path(own, "ray.log")
        return RaySession(
            run=run.storage.url, num_cpus=num_cpus, log=log_of_ray, code_env=code_env(run)
        )

    standby = Standby(run, logs.path(own, "standby.log"), cluster)
    return Surroundings(start_ray, standby=standby, num_cpus=num_cpus)


def main(argv: Sequence[str] | None = None) -> int:
    """Supervise one run until it ends."""
    return supervise(argv, of_this_machine)


if __name__ == "__main__":
    sys.exit(main())
