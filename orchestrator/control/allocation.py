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
from orchestrator.control.say import say
from orchestrator.control.supervise import (
    LAST_WORDS_S,
    Supervisor,
    write_figures,
    write_last_page,
)
from orchestrator.errors import BackendError, OrchestratorError
from orchestrator.ledger import invitation
from orchestrator.ledger.run import ALLOCATION_ENDED, ALLOCATION_FOLDER, FAULT_ORDER, RunFolder
from orchestrator.ledger.store import Store
from orchestrator.ledger.submission import Submissions
from orchestrator.plan.planner import Instance
from orchestrator.plan.stages import BY_NAME

AGENT_MODULE = "jobs.lm.node_agent"
_TICK_S = 1.0
_UPSTREAM_TIMEOUT_S = 120.0
_WORKERS_EVERY_S = 120.0
_MAX_REPLACED_IN_VAIN = 3
"""After so many replacements without a shard done, something else is wrong with the workers."""
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
        _dismiss_workers(run, options.instance)
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
    return allocation.come_back() if state == "left" else 1


def _supervise(
    store: Store, run: RunFolder, allocation: Allocation, options: argparse.Namespace
) -> str:
    """Work on the stage until it is done, cannot be, or must be left: its state, or ``left``."""
    cluster, instance = run.cluster(), run.plan().instance(options.instance)
    is_elastic = _is_elastic(run, instance.id)
    supervisor = Supervisor(
        store,
        run,
        LocalBackend(grace_s=cluster.retry.notice_s + LAST_WORDS_S, node=allocation.node),
        only=instance.id,
        past=_past(run, instance.id),
        about={
            "job": allocation.job_id,
            "life": allocation.life,
            "node": allocation.node,
            "moves": run.num_moves,
        },
        start_ray=(lambda: _start_head(run, instance.id, allocation)) if is_elastic else None,
        beat=_Beat(store, run, instance.id, allocation.life, watches_workers=is_elastic),
        tick_s=_TICK_S,
        keeps_figures=False,
    )
    warned_at = time.monotonic() + 60 * options.walltime_min - cluster.retry.notice_s

    def warn(number: int, _frame: FrameType | None) -> None:
        say(f"warned by {signal.Signals(number).name}")
        is_over = number == signal.SIGUSR2 and time.monotonic() > warned_at - _WALLTIME_SLACK_S
        supervisor.stop("walltime" if is_over else "preempted")

    for number in _WARNINGS:
        signal.signal(number, warn)
    try:
        _await_upstream(store, run, instance, supervisor)
        state = supervisor.run()
    finally:
        invitation.withdraw(run.stage(instance.id))
    say(f"{instance.id}: {state}")
    if supervisor.is_stopped and state in ("pending", "running"):
        return "left"
    if is_elastic:
        _dismiss_workers(run, instance.id)
    return state


def _await_upstream(
    store: Store, run: RunFolder, instance: Instance, supervisor: Supervisor
) -> None:
    """Jobs come after those they need; a file system may show late what these have published."""
    plan = run.plan()
    needs = {n for member in plan.group(instance.id) for n in member.needs.values()}
    deadline = time.monotonic() + _UPSTREAM_TIMEOUT_S
    while missing := [n for n in sorted(needs) if not store.has(plan.instance(n))]:
        if supervisor.is_stopped or time.monotonic() > deadline:
            say(f"not complete in the store: {', '.join(missing)}")
            return
        time.sleep(_TICK_S)


def _is_cancelled(run: RunFolder, instance: str) -> bool:
    """Whether somebody has asked for that since a user last wanted it to run."""
    names = {None, instance, run.plan().instance(instance).stage}
    return bool(names & run.cancelled_stages())


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
    close_attempts(run, store, instance, status, last.ended_at if last else None)


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


class _Beat:
    """What is looked after while the stage is at work."""

    def __init__(
        self, store: Store, run: RunFolder, instance: str, life: str, *, watches_workers: bool
    ) -> None:
        self._life = life
        self._store, self._run, self._instance = store, run, instance
        self._watches_workers = watches_workers
        self._looked_at = time.monotonic()
        self._progress, self._in_vain = -1.0, 0
        """Work done when workers were last replaced, and how often that brought none."""

    def __call__(self) -> None:
        self._obey_drill()
        if self._watches_workers and time.monotonic() - self._looked_at > _WORKERS_EVERY_S:
            self._looked_at = time.monotonic()
            self._replace_workers()

    def _obey_drill(self) -> None:
        """Be the victim of `orchestrator chaos --kill node`, when that names this machine."""
        for attempt in self._run.attempts(self._instance)[-1:]:
            is_ours = attempt.started.get("life") == self._life
            if is_ours and attempt.storage.exists(FAULT_ORDER):
                fault = attempt.storage.read_json(FAULT_ORDER)
                if fault.get("node") == socket.gethostname():
                    os.kill(os.getpid(), signal.SIGKILL)

    def _replace_workers(self) -> None:
        """Nodes that have left the queue for good are asked for anew, while that helps."""
        progress = self._store.progress(*self._run.plan().group(self._instance))
        if progress == self._progress and self._in_vain >= _MAX_REPLACED_IN_VAIN:
            return
        if _ask_for_workers(self._store, self._run, self._instance):
            self._in_vain = self._in_vain + 1 if progress == self._progress else 0
            self._progress = progress


def _is_elastic(run: RunFolder, instance: str) -> bool:
    return BY_NAME[run.plan().instance(instance).stage].is_elastic


def _ask_for_workers(store: Store, run: RunFolder, instance: str) -> int:
    """Those that are not in the queue any more are replaced; how many."""
    try:
        count = SlurmCarrier().replace_workers(run, store, instance)
    except OrchestratorError as error:
        say(f"workers: {error}")
        return 0
    if count:
        say(f"{count} workers asked for in place of those that left the queue")
    return count


def _dismiss_workers(run: RunFolder, instance: str) -> None:
    """Cancel the array: nothing is left for it to do. Those that run see that for themselves."""
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
    sys.exit(main())
