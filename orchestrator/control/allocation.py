"""The supervisor of one stage inside its Slurm job; ``python -m`` it is what the job runs.

On the job's first node: starts attempts, decides about their ends, restarts within the allocation,
carries the Ray head of a data stage. When the scheduler warns, what runs may save, and the job asks
for its place in the queue again. On every other node of a training: the agent that starts the ranks
there. Exit code 0 says that the stage is complete, which is what later jobs wait for.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from orchestrator.backends.allocation import Allocation
from orchestrator.backends.base import JobState, JobStatus
from orchestrator.backends.local import LocalBackend
from orchestrator.backends.ray_session import RaySession
from orchestrator.backends.slurm import SlurmBackend
from orchestrator.control.job import code_env
from orchestrator.control.on_slurm import SlurmCarrier, close_attempts, refs_of
from orchestrator.control.supervise import (
    LAST_WORDS_S,
    Supervisor,
    say,
    write_figures,
    write_last_page,
)
from orchestrator.errors import BackendError, OrchestratorError
from orchestrator.ledger import invitation
from orchestrator.ledger.run import ALLOCATION_ENDED, ALLOCATION_FOLDER, FAULT_ORDER, RunFolder
from orchestrator.ledger.store import Store
from orchestrator.ledger.submission import Submissions
from orchestrator.plan.stages import BY_NAME

AGENT_MODULE = "jobs.lm.node_agent"
_TICK_S = 1.0
_WALLTIME_SLACK_S = 90.0
"""How much before its time Slurm may give the warning that the walltime ends."""
_WARNINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry one stage as far as this allocation lasts."""
    options = _parse(argv)
    allocation = Allocation.current()
    store = Store.open(options.store)
    run = RunFolder(store.run_storage(options.run))
    os.environ[ALLOCATION_FOLDER] = run.allocation(options.instance, allocation.life).url
    if allocation.node_index > 0:
        _become_agent(allocation)
    say(f"{options.instance}: start {allocation.life} on {allocation.node}")
    _close_earlier(run, store, options.instance, allocation)
    if _is_cancelled(run, options.instance):
        say("cancelled while it waited")
        return 1
    if allocation.restarts and _is_elastic(run, options.instance):
        _ask_for_workers(store, run, options.instance)
    try:
        state = _supervise(store, run, allocation, options)
    finally:
        run.allocation(options.instance, allocation.life).replace(ALLOCATION_ENDED, b"{}")
    if state == "succeeded":
        _conclude(store, run)
        return 0
    if state in ("pending", "running"):
        allocation.come_back()
    return 1


def _supervise(
    store: Store, run: RunFolder, allocation: Allocation, options: argparse.Namespace
) -> str:
    """Work on the stage until it is done, cannot be, or must be left; its state then."""
    cluster, instance = run.cluster(), run.plan().instance(options.instance)
    is_elastic = _is_elastic(run, instance.id)
    supervisor = Supervisor(
        store,
        run,
        LocalBackend(grace_s=cluster.retry.notice_s + LAST_WORDS_S),
        only=instance.id,
        past=_past(run, instance.id),
        about={"job": allocation.job_id, "life": allocation.life, "node": allocation.node},
        start_ray=(lambda: _start_head(run, instance.id, allocation)) if is_elastic else None,
        beat=lambda: _obey_drill(run, instance.id),
        tick_s=_TICK_S,
    )
    warned_at = time.monotonic() + 60 * options.walltime_min - cluster.retry.notice_s

    def warn(number: int, _frame: FrameType | None) -> None:
        say(f"warned by {signal.Signals(number).name}")
        is_over = number == signal.SIGUSR2 and time.monotonic() > warned_at - _WALLTIME_SLACK_S
        supervisor.stop("walltime" if is_over else "preempted")

    for number in _WARNINGS:
        signal.signal(number, warn)
    state = supervisor.run()
    say(f"{instance.id}: {state}")
    if is_elastic and state != "pending":
        _dismiss_workers(run, instance.id)
    return state


def _is_cancelled(run: RunFolder, instance: str) -> bool:
    """Whether somebody has asked for that since a user last wanted it to run."""
    since = Submissions(run.storage).users_last()
    names = (None, instance, run.plan().instance(instance).stage)
    return any(c["stage"] in names and c["asked_at"] > since for c in run.cancel_requests())


def _become_agent(allocation: Allocation) -> None:
    words = ("-u", "-m", AGENT_MODULE, "--node", str(allocation.node_index))
    os.execv(sys.executable, (sys.executable, *words))


def _close_earlier(run: RunFolder, store: Store, instance: str, allocation: Allocation) -> None:
    """Say how attempts of earlier starts ended, where they could not say so themselves."""
    if all(a.end for a in run.attempts(instance)):
        return
    lives = allocation.earlier_lives()
    last = lives[-1] if lives else None
    status = JobStatus(
        state=JobState.FAILED,
        node=last.nodes if last else "",
        detail=last.word if last else "",
        cause=last.cause if last else "node_lost",
    )
    close_attempts(run, store, instance, status)


def _past(run: RunFolder, instance: str) -> list[tuple[str, float, str]]:
    """The ends since a user last looked; a user who resumes grants new budgets."""
    since = Submissions(run.storage).users_last()
    attempts = [a for a in run.attempts(instance) if a.started["started_at"] >= since]
    ends = [end for a in attempts if (end := a.end)]
    counted = [end for end in ends if end["cause"] and end["action"] != "wait"]
    return [(end["cause"], end.get("progress", 0.0), end.get("node", "")) for end in counted]


def _start_head(run: RunFolder, instance: str, allocation: Allocation) -> RaySession:
    """The Ray head that workers join, wherever it is now."""
    session = RaySession(
        run=f"{run.storage.url}/{instance}",
        num_cpus=0,
        address=allocation.leader_address,
        log=Path(run.allocation(instance, allocation.life).url, "ray.log"),
        code_env=code_env(run),
    )
    invitation.publish(run.stage(instance), session.invitation)
    return session


def _obey_drill(run: RunFolder, instance: str) -> None:
    """Be the victim of `orchestrator chaos --kill node`, when that names this machine."""
    for attempt in run.attempts(instance)[-1:]:
        if attempt.storage.exists(FAULT_ORDER):
            fault = attempt.storage.read_json(FAULT_ORDER)
            if fault.get("node") == socket.gethostname():
                os.kill(os.getpid(), signal.SIGKILL)


def _is_elastic(run: RunFolder, instance: str) -> bool:
    return BY_NAME[run.plan().instance(instance).stage].is_elastic


def _ask_for_workers(store: Store, run: RunFolder, instance: str) -> None:
    """Those that gave up waiting while this job was in the queue are replaced."""
    try:
        SlurmCarrier().replace_workers(run, store, instance)
    except OrchestratorError as error:
        say(f"workers: {error}")


def _dismiss_workers(run: RunFolder, instance: str) -> None:
    """Cancel the array: nothing is left for it to do. Those that run see that for themselves."""
    invitation.withdraw(run.stage(instance))
    try:
        SlurmBackend().cancel(refs_of(run, "workers", instance))
    except BackendError as error:
        say(f"workers: {error}")


def _conclude(store: Store, run: RunFolder) -> None:
    """Whoever completes the run writes its last page."""
    if store.has(*run.plan().instances):
        write_figures(run, store)
        write_last_page(run, store)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__)
    parser.add_argument("--store", required=True, help="URL of the store")
    parser.add_argument("--run", required=True, help="name of the run")
    parser.add_argument("--instance", required=True, help="stage instance")
    parser.add_argument("--walltime-min", required=True, type=int, help="the job's time in minutes")
    return parser.parse_args(argv)


if __name__ == "__main__":
    try:
        code = main()
    except Exception:  # noqa: BLE001 (the last stop: traceback to the job's log)
        traceback.print_exc()
        code = 1
    sys.exit(code)
