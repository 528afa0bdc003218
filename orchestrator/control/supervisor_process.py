"""The process that supervises one run from its start to its end, wherever it was started."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import NamedTuple

from orchestrator.backends.ray_session import Session
from orchestrator.control.executor import observe
from orchestrator.control.job import log_to_stderr, run_parser, store_and_run
from orchestrator.control.notify import Notifier
from orchestrator.control.run_logs import RunLogs
from orchestrator.control.standby import Standby
from orchestrator.control.store_patience import StorePatience
from orchestrator.control.supervise import (
    TICK_S,
    Supervisor,
    backend_of_drivers,
    log,
    write_last_page,
)
from orchestrator.errors import (
    Cause,
    ExitCode,
    LeaseHeldError,
    OrchestratorError,
    cause_of,
    last_sentence,
    os_words,
)
from orchestrator.ledger import lease as leases
from orchestrator.ledger.attempt import FAULT_ORDER
from orchestrator.ledger.lease import Process
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.store import Store
from orchestrator.ledger.stuck_files import StuckFile, own_files_watched

_UNDER_WAY = ("running", "pending")
REMOTE_TICK_S = 2.0
"""Between looks at a store that is no path: each asks it several times, and may cost money."""


class Surroundings(NamedTuple):
    """What a supervisor's jobs find around them, as `Supervisor` takes it."""

    start_ray: Callable[[], Session]
    on_nodes: bool = False
    standby: Standby | None = None
    num_cpus: int | None = None
    tend: Callable[[], None] = lambda: None
    """Called at every look: what must be looked after besides."""


Surround = Callable[[RunFolder, Storage, RunLogs], Surroundings]
"""Of a run, given the supervisor's own folder and the logs."""


def supervise(argv: Sequence[str] | None, surround: Surround) -> int:
    """Supervise the run that the words name until it ends; the process's exit code."""
    store, run = store_and_run(run_parser("Supervise one run.").parse_args(argv))
    log_to_stderr()
    timeout_s = run.cluster().retry.heartbeat_timeout_s
    notifier = Notifier(store, run)
    try:
        with leases.held(run.supervision, holder=run.name, timeout_s=timeout_s) as beat:
            notifier.watch()
            return _supervise(store, run, beat, surround)
    except LeaseHeldError as error:
        log.info("%s; nothing to do", error)
        return 0
    except (OSError, OrchestratorError) as error:
        return said(error)
    finally:  # the run's end is known by now, and another supervisor may begin
        notifier.close(lambda: observe(run))


def said(error: OSError | OrchestratorError) -> int:
    """Log it, as whoever has started this process shows the last line; the exit code for it."""
    if isinstance(error, OrchestratorError):
        log.error("%s", error)
        return error.exit_code
    log.error("%s", os_words(error))  # the store's
    return ExitCode.UNREACHABLE


def _settle_earlier(run: RunFolder) -> None:
    """Write down the ends that the store did not take, of earlier supervisors and attempts."""
    attempts = (a for i in run.plan().leaders for a in run.attempts(i.id))
    for ended in (*run.supervisors(), *attempts):
        ended.settle()


def _supervise(store: Store, run: RunFolder, beat: Callable[[], None], surround: Surround) -> int:
    _settle_earlier(run)
    record = run.begin_supervisor(process=Process.current().__dict__)
    logs, cluster = RunLogs(run), run.cluster()

    around = surround(run, record.storage, logs)._asdict()
    tend = around.pop("tend")

    def beat_and_obey() -> None:
        beat()
        tend()
        if record.storage.exists(FAULT_ORDER):  # a drill that takes this node down
            os.kill(os.getpid(), signal.SIGKILL)

    backend = backend_of_drivers(cluster)

    def leave(stuck: StuckFile) -> None:
        backend.kill_all()
        record.keep_end(state="failed", cause=Cause.STORAGE, reason=str(stuck))
        os._exit(ExitCode.UNREACHABLE)

    supervisor = Supervisor(
        store,
        run,
        backend,
        logs=logs,
        **around,
        beat=beat_and_obey,
        patience=StorePatience(record.storage.url),
        tick_s=TICK_S if run.storage.local_root else REMOTE_TICK_S,
    )

    def stop(_signal: int, _frame: FrameType | None) -> None:
        supervisor.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        with own_files_watched(cluster.retry.hang_timeout_s, leave):
            state = supervisor.run()
    except LeaseHeldError as error:  # a mover has it, or another supervisor
        log.warning("%s", error)
        logs.copy(now=True)
        record.finish(state="failed", cause=Cause.LEASE_HELD, reason=str(error))
        return ExitCode.FAILED
    except Exception as error:
        cause = _told(error)
        logs.copy(now=True)
        with suppress(OSError):  # this machine keeps it
            record.finish(state="failed", cause=cause, reason=last_sentence(error))
        raise
    if not supervisor.has_moved:
        write_last_page(run, store, _final(state))
    logs.close()
    record.finish(state=_final(state), cause=_why(supervisor, state), reason=supervisor.limit)
    return 0 if state == "succeeded" else 1


def _told(error: Exception) -> Cause:
    """The cause of an end; a defect of ours is told to the log in full."""
    if isinstance(error, OSError | OrchestratorError):
        return cause_of(error)
    traceback.print_exc()
    return Cause.SUPERVISOR


def _final(state: str) -> str:
    """A run's state once nobody supervises it."""
    return "failed" if state in _UNDER_WAY else state


def _why(supervisor: Supervisor, state: str) -> str:
    """The cause of an end that no error explains; empty for none."""
    if supervisor.has_moved:
        return Cause.MOVED
    if supervisor.limit:
        return Cause.LIMIT
    return Cause.PREEMPTED if state in _UNDER_WAY else ""
