"""The supervisor of one stage inside its Slurm job; ``python -m`` it is what the job runs.

On the job's first node: starts attempts, decides about their ends, restarts within the allocation,
runs the Ray head of a data stage. When the scheduler warns, what runs may save, and the job asks
to be requeued. On every other node of a training: the agent that starts the ranks
there. Exit code 0 says that the stage is complete, which is what later jobs wait for.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType

from orchestrator.backends.slurm_allocation import Allocation
from orchestrator.control.job import log_to_stderr, run_parser, store_and_run
from orchestrator.control.notify import Notifier
from orchestrator.control.slurm.executor import SlurmExecutor
from orchestrator.control.slurm.job_states import close_attempts, last_known, note_own_end
from orchestrator.control.slurm.jobs import shape_of
from orchestrator.control.slurm.more_nodes import MoreNodes, sizes_of, tries_in_vain
from orchestrator.control.slurm.other_runs import OtherRuns
from orchestrator.control.slurm.ray_cluster import RayCluster, dismiss_workers
from orchestrator.control.standby import Standby
from orchestrator.control.supervise import (
    Supervisor,
    backend_of_drivers,
    write_figures,
    write_last_page,
)
from orchestrator.errors import Cause, ExitCode, cause_of, os_words
from orchestrator.ledger.attempt import FAULT_ORDER
from orchestrator.ledger.run import (
    ALLOCATION_ADDRESS,
    ALLOCATION_ENDED,
    ALLOCATION_FOLDER,
    ALLOCATION_NODES,
    RunFolder,
)
from orchestrator.ledger.spending import held
from orchestrator.ledger.status import JobStatus, Observed, RunState
from orchestrator.ledger.storage import to_json
from orchestrator.ledger.store import Store
from orchestrator.ledger.stuck_files import StuckFile, own_files_watched
from orchestrator.plan.planner import Instance
from orchestrator.plan.stages import BY_NAME
from orchestrator.spec.cluster import Cluster

AGENT_MODULE = "jobs.training.node_agent"
WARNED = "warned.json"
"""In an allocation's folder: why the scheduler was about to end it."""
_TICK_S = 1.0
_UPSTREAM_TIMEOUT_S = 120.0
_LAST_NOTICE_S = 5.0
"""How long people may be told for while the node is to be given back; the next start tells them."""
_WALLTIME_SLACK_S = 90.0
"""How much before its time Slurm may give the warning that the walltime ends."""
WARNINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Work on one stage as long as this allocation lasts.

    Its exit code is all that tells of a store that does not even take that word.
    """
    try:
        return _work(argv)
    except OSError as error:
        if cause_of(error) is not Cause.STORAGE:
            raise
        with suppress(OSError):
            log.error("%s", os_words(error))
        return ExitCode.UNREACHABLE


def _work(argv: Sequence[str] | None) -> int:
    early: list[int] = []
    for number in WARNINGS:
        signal.signal(number, lambda number, _: early.append(number))
    parser = run_parser(__doc__)
    parser.add_argument("--instance", required=True, help="stage instance")
    parser.add_argument("--walltime-min", required=True, type=int, help="the job's time in minutes")
    options = parser.parse_args(argv)
    allocation = Allocation.current()
    store, run = store_and_run(options)
    log_to_stderr()
    os.environ[ALLOCATION_FOLDER] = run.allocation(options.instance, allocation.restart_id).url
    if allocation.node_index > 0:
        os.environ.update(_standby(run, allocation, options.instance).env())
        words = ("-u", "-m", AGENT_MODULE, "--node", str(allocation.node_index))
        os.execv(sys.executable, (sys.executable, *words))
    allocation = replace(allocation, leader_address=allocation.reachable_address())
    os.environ[ALLOCATION_ADDRESS] = allocation.leader_address
    os.environ[ALLOCATION_NODES] = str(allocation.num_nodes)
    log.info("%s: start %s on %s", options.instance, allocation.restart_id, allocation.node)
    with suppress(OSError):  # of one that somebody has put back into the queue after its end
        run.submissions.reopen(allocation.job_id)
    if not all(a.end for a in run.attempts(options.instance)):
        # Those of earlier starts that could not write their ends themselves.
        close_attempts(run, store, options.instance, *_previous_end(run, options, allocation))
    instance = run.plan().instance(options.instance)
    # Whether somebody has asked for that since a user last wanted it to run.
    if any(instance.answers_to(name) for name in run.cancelled_stages()):
        log.info("cancelled while it waited")
        dismiss_workers(run, options.instance)
        note_own_end(run, allocation.job_id, "cancelled")
        return 1
    others = OtherRuns(store, run, run.plan().group(instance.id))
    notifier = Notifier(store, run)
    notifier.watch()
    try:
        with own_files_watched(run.cluster().retry.hang_timeout_s, _leave):
            state = supervise(store, run, allocation, options, early, others)
    finally:
        run.allocation(options.instance, allocation.restart_id).replace(ALLOCATION_ENDED, b"{}")
    if state != "left":
        note_own_end(run, allocation.job_id, state)
    is_whole = state == "succeeded" and store.has(*run.plan().instances)
    if is_whole:  # whoever completes the run writes its last page
        write_last_page(run, store, RunState.SUCCEEDED)
    elif state != "left":
        write_figures(run, store, lambda: last_known(run, ""))
    within_s = _LAST_NOTICE_S if state == "left" else None
    notifier.close(lambda: Observed(is_alive=not is_whole), within_s)
    if state != "left":
        return 0 if state == "succeeded" else 1
    if not others.are_waited_for:
        return allocation.requeue()
    terms = others.terms(allocation)
    log.info("%s: another run works on it; gives its nodes back (%s)", instance.id, terms)
    dismiss_workers(run, instance.id)
    return allocation.requeue(terms)


def _leave(stuck: StuckFile) -> None:
    """End without a word to the store, which may be what does not answer."""
    with suppress(OSError):
        log.error("%s", stuck)
    os._exit(ExitCode.UNREACHABLE)


def supervise(
    store: Store,
    run: RunFolder,
    allocation: Allocation,
    options: argparse.Namespace,
    signals: list[int],
    others: OtherRuns,
) -> str:
    """Work on the stage until it is done, cannot be, or must be left: its state, or ``left``.

    ``signals``: those that came before anybody could obey them. ``others``: runs that may be at
    work on the same stage; after a while they are no longer waited for here.
    """
    cluster, instance = run.cluster(), run.plan().instance(options.instance)
    is_elastic = BY_NAME[instance.stage].is_elastic
    ray = RayCluster(store, run, instance.id, allocation) if is_elastic else None
    here = run.allocation(instance.id, allocation.restart_id)
    more = _more_nodes(store, run, instance, allocation)

    def tell() -> None:
        while signals:
            log.info("warned by %s", signal.Signals(signals.pop(0)).name)
            with suppress(OSError):
                here.replace(WARNED, to_json({"cause": supervisor.stop_cause}))

    def beat() -> None:
        tell()
        _obey_drill(run, instance.id, allocation.restart_id)
        _make_way(supervisor, others, more)
        if ray:
            ray.look()

    supervisor = Supervisor(
        store,
        run,
        backend_of_drivers(cluster, allocation.node),
        only=instance.id,
        past=_past(run, instance.id),
        about={**allocation.noted, "moves": run.num_moves, **_held(cluster, instance, allocation)},
        start_ray=ray.start_head if ray else None,
        standby=_standby(run, allocation, instance.id),
        beat=beat,
        tick_s=_TICK_S,
        is_set_up=True,
        look=lambda: last_known(run, allocation.job_id),
    )
    _heed_warnings(supervisor, 60 * options.walltime_min - cluster.retry.notice_s, signals)
    try:
        _await_upstream(store, run, instance, supervisor)
        state = supervisor.run()
    finally:
        tell()
        if ray:
            ray.withdraw()
    log.info("%s: %s", instance.id, state)
    if supervisor.is_stopped and state in ("pending", "running"):
        return "left"
    if ray:
        dismiss_workers(run, instance.id)
    return state


def _make_way(supervisor: Supervisor, others: OtherRuns, more: MoreNodes) -> None:
    """Stop for a run that does the same, or for more nodes."""
    if supervisor.waits_for_others and others.will_take_long():
        supervisor.stop(Cause.LEASE_HELD)
    if not supervisor.is_stopped and more.are_there():
        supervisor.stop(Cause.PREEMPTED)


def _more_nodes(
    store: Store, run: RunFolder, instance: Instance, allocation: Allocation
) -> MoreNodes:
    """The nodes that the stage's ranks could have besides those of this job."""
    cluster = run.cluster()
    recipe = next(v.recipe for v in run.variants() if v.name in instance.variants)
    # A job that may not go back into the queue by itself keeps what it has.
    sizes = sizes_of(cluster, recipe, instance) if cluster.slurm.requeue else ()
    ask = partial(SlurmExecutor().has_room, run, store, instance.id, allocation.partition)
    return MoreNodes(
        held=allocation.num_nodes,
        sizes=sizes,
        tries=tries_in_vain(run, instance.id, allocation) if sizes else 0,
        wait_s=cluster.retry.resize_wait_s,
        has_room=ask,
        saved_step=lambda: store.progress(instance),
        note=run.allocation(instance.id, allocation.restart_id),
    )


def _previous_end(
    run: RunFolder, options: argparse.Namespace, allocation: Allocation
) -> tuple[JobStatus, float | None]:
    """How the job's start before this one ended: by the books, else by the warning it had."""
    status, ended_at = allocation.previous_end()
    before = run.allocation(options.instance, f"{allocation.job_id}-{allocation.restarts - 1}")
    if not status.detail and (warned := before.find_json(WARNED)):
        status = replace(status, cause=Cause(warned["cause"]), detail="it was warned before that")
    return status, ended_at


def _standby(run: RunFolder, allocation: Allocation, instance_id: str) -> Standby:
    """What forks the ranks of this node in all attempts of this allocation."""
    folder = run.allocation(instance_id, allocation.restart_id).url
    return Standby(run, Path(folder, f"standby-{allocation.node_index:05d}.log"))


def _held(cluster: Cluster, instance: Instance, allocation: Allocation) -> dict[str, float]:
    """What the job holds; a data stage's is its head, whose workers note theirs themselves."""
    shape = shape_of(cluster, instance.stage, instance.node)
    num_nodes = allocation.num_nodes
    return held(num_nodes * shape.gpus, num_nodes * shape.cpus, cluster.prices)


def _heed_warnings(supervisor: Supervisor, walltime_ends_s: float, signals: list[int]) -> None:
    """Stop the supervisor when a signal comes, or has come; its time tells the walltime's end.

    A handler may interrupt whoever is writing to the log, so that it only adds to ``signals``.
    ``walltime_ends_s``: when Slurm warns that the walltime ends, in seconds from now.
    """
    warned_at = time.monotonic() + walltime_ends_s

    def stop(number: int) -> None:
        is_over = number == signal.SIGUSR2 and time.monotonic() > warned_at - _WALLTIME_SLACK_S
        supervisor.stop(Cause.WALLTIME if is_over else Cause.PREEMPTED)

    def warn(number: int, _frame: FrameType | None) -> None:
        stop(number)
        signals.append(number)

    for number in WARNINGS:
        signal.signal(number, warn)
    for early in tuple(signals):
        stop(early)


def _await_upstream(
    store: Store, run: RunFolder, instance: Instance, supervisor: Supervisor
) -> None:
    """Jobs come after those they need; a file system may show late what these have published."""
    plan = run.plan()
    needs = {n for member in plan.group(instance.id) for n in member.needs.values()}
    deadline = time.monotonic() + _UPSTREAM_TIMEOUT_S
    while missing := [n for n in sorted(needs) if not store.has(plan.instance(n))]:
        if supervisor.is_stopped or time.monotonic() > deadline:
            log.warning("not complete in the store: %s", ", ".join(missing))
            return
        time.sleep(_TICK_S)


def _past(run: RunFolder, instance: str) -> list[tuple[Cause, float, str]]:
    """The ends since a user last looked; a user who resumes grants new budgets."""
    since = run.submissions.users_last()
    attempts = [a for a in run.attempts(instance) if a.started["started_at"] >= since]
    ends = [end for a in attempts if (end := a.end)]
    counted = [end for end in ends if end["cause"] and end["action"] != "wait"]
    return [(Cause(end["cause"]), end.get("progress", 0.0), end.get("node", "")) for end in counted]


def _obey_drill(run: RunFolder, instance: str, restart_id: str) -> None:
    """Be the victim of `orchestrator chaos --kill node`, when that names this machine."""
    for attempt in run.attempts(instance)[-1:]:
        is_ours = attempt.started.get("restart_id") == restart_id
        if is_ours and attempt.storage.exists(FAULT_ORDER):
            fault = attempt.storage.read_json(FAULT_ORDER)
            if fault.get("node") == socket.gethostname():
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
