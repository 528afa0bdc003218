"""Resumes a run whose job has failed where nobody else would; ``python -m`` it is a job of its own.

Slurm starts it when one of the jobs it watches has not succeeded. It goes on like a user who types
`orchestrator resume`, unless somebody cancelled, the policy said stop, or that got the run no
further often enough. What is in its way for a while, a full store or a scheduler that is away, it
waits for, to the end of its own walltime and in as many jobs as it takes.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from orchestrator.backends.slurm import NoRoomError
from orchestrator.backends.slurm_allocation import Allocation
from orchestrator.control.executor import Started, executor_of
from orchestrator.control.job import log_to_stderr, run_parser, store_and_run
from orchestrator.control.notify import Notifier
from orchestrator.control.slurm.executor import SlurmExecutor
from orchestrator.control.slurm.job_states import note_own_end, unfinished, work_left
from orchestrator.control.slurm.other_runs import LATER, OtherRuns
from orchestrator.control.supervise import write_figures
from orchestrator.errors import BackendError, RequestError, last_sentence
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.spending import spending
from orchestrator.ledger.status import JobState, Observed
from orchestrator.ledger.store import Store
from orchestrator.plan.planner import Instance, Plan

SETTLE_TIMEOUT_S = 900.0
"""How long the books may take to say which job has failed, and the scheduler to take new ones."""
LOOK_EVERY_S = 5.0
TRY_AGAIN_S = 60.0
MAX_PAUSE_S = 600.0
REQUEUE_S = 90.0
"""How long before the end of its walltime a sentinel asks to be started again later."""
PASSING = (OSError, BackendError, NoRoomError)
"""What is in the way for a while: a store that is full or away, a scheduler that is, its limits."""
Result = TypeVar("Result")

_AT_WORK = Observed(is_alive=True)

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Resume the run, or say why not."""
    parser = run_parser(__doc__)
    parser.add_argument("--submission", required=True, type=int, help="the one it belongs to")
    parser.add_argument("--walltime-min", required=True, type=int, help="the job's time in minutes")
    options = parser.parse_args(argv)
    log_to_stderr()
    ends_at = time.monotonic() + 60 * options.walltime_min - REQUEUE_S
    store, run = store_and_run(options)
    executor, others, state = SlurmExecutor(), dict[str, OtherRuns](), JobState.FAILED
    act = partial(see_to, store, run, executor, options.submission, others, ends_at)
    try:
        state = JobState.SUCCEEDED if persist(act, ends_at) else JobState.QUEUED
    finally:
        if state.is_final:
            note_own_end(run, os.environ.get("SLURM_JOB_ID", ""), state)
            write_figures(run, store, lambda: executor.observe([run])[run.name])
    if state.is_final:
        return 0
    log.info("%s: looks again later", run.name)
    return Allocation.current().requeue(LATER)


def see_to(
    store: Store,
    run: RunFolder,
    executor: SlurmExecutor,
    submission: int,
    others: dict[str, OtherRuns],
    ends_at: float,
) -> bool:
    """Resume the run, or say why not; True once that is done.

    Waits for nothing beyond ``ends_at``, a monotonic time: the job would be killed, not requeued.
    """
    observed = settled(run, executor, _patience_s(ends_at))
    notifier = Notifier(store, run)
    notifier.watch()
    is_left = False
    try:
        if why := superseded(run, submission):
            log.info("%s: not resumed: %s", run.name, why)
        elif why := run_refusal(run, store):
            log.info("%s: not resumed: %s", run.name, why)
            is_left = True
        else:
            require_own_work(store, run, others)
            is_left = not _resumed(store, run, executor, observed, ends_at)
    finally:
        notifier.close(lambda: replace(observed, is_alive=False) if is_left else _AT_WORK)
    return True


def _patience_s(ends_at: float) -> float:
    """How long one thing may be waited for."""
    return min(SETTLE_TIMEOUT_S, max(ends_at - time.monotonic(), 0.0))


def _resumed(
    store: Store, run: RunFolder, executor: SlurmExecutor, observed: Observed, ends_at: float
) -> bool:
    """Resume what may be; whether somebody is at work on the run now."""
    refused = stage_refusals(run, observed)
    for instance, why in refused.items():
        log.info("%s: not resumed: %s", instance, why)
    started = resume(run, store, executor, refused, _patience_s(ends_at))
    log.info("%s: %s, %d jobs submitted", run.name, started.outcome, started.num_jobs)
    return started.outcome in ("started", "running")


def persist(
    act: Callable[[], Result], ends_at: float, pause_s: float = TRY_AGAIN_S
) -> Result | None:
    """What ``act`` returns once nothing is in its way; None when that is not before ``ends_at``.

    ``ends_at`` is a monotonic time; pauses double from ``pause_s`` on. Raises what does not pass.
    """
    while True:
        try:
            return act()
        except PASSING as error:
            problem = last_sentence(error)
        if time.monotonic() + pause_s > ends_at:
            log.warning("%s", problem)
            return None
        log.warning("%s; tried again in %.0f s", problem, pause_s)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, MAX_PAUSE_S)


def require_own_work(store: Store, run: RunFolder, others: dict[str, OtherRuns]) -> None:
    """Raises BackendError while another run works on what is left, where no job can wait for it.

    Where jobs may be requeued, theirs wait in the queue for that. ``others``: as they were seen so
    far, by instance.
    """
    if run.cluster().slurm.requeue:
        return
    plan = run.plan()
    left = [i.id for i in unfinished(plan, store)]
    others |= {n: OtherRuns(store, run, plan.group(n)) for n in left if n not in others}
    if any(others[name].holder() for name in left):
        raise BackendError(f"{run.name}: another run works on what is left; resumed when it ends")


def superseded(run: RunFolder, submission: int) -> str:
    """Why a run is no business of this sentinel any more; empty when it is."""
    later = [s for s in run.submissions.all() if s.number > submission]
    # A half that a sentinel has left does not take the run off our hands.
    if any(s.is_whole or s.by == "user" for s in later):
        return "it was submitted again since"
    if not isinstance(executor_of(run.cluster()), SlurmExecutor):
        return "it has moved to another cluster"
    if moved := run.moved:
        return f"it has moved to {moved.to}"
    return ""


def run_refusal(run: RunFolder, store: Store) -> str:
    """Why nobody must resume a whole run but its user; empty when a sentinel may."""
    submissions, cluster = run.submissions, run.cluster()
    if None in run.cancelled_stages():
        return "somebody cancelled it"
    if submissions.in_vain(work_left(run.plan(), store)) >= cluster.slurm.max_resumes:
        return "it was resumed in vain often enough (slurm.max_resumes); look at its attempts"
    return spending(run, run.plan(), is_alive=False).used_up(cluster)


def resume(
    run: RunFolder,
    store: Store,
    executor: SlurmExecutor,
    refused: Collection[str],
    timeout_s: float = SETTLE_TIMEOUT_S,
    try_again_s: float = TRY_AGAIN_S,
) -> Started:
    """Submit what is left without ``refused``; tried again for a while, as nobody else will.

    Raises what went wrong last, and at once what a sentinel waits for anyway.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return executor.start(run, store, "sentinel", refused)
        except NoRoomError:
            raise
        except RequestError as error:  # a limit may be there for a while
            if time.monotonic() + try_again_s > deadline:
                raise
            log.warning("%s; tried again in %.0f s", error, try_again_s)
        time.sleep(try_again_s)


def stage_refusals(run: RunFolder, observed: Observed) -> dict[str, str]:
    """Stage instances that a sentinel must leave alone, and why."""
    plan, since = run.plan(), run.submissions.users_last()
    cancelled = run.cancelled_stages()
    found = {}
    for instance in plan.leaders:
        attempts = run.attempts(instance.id)
        end = attempts[-1].end if attempts else None
        if any(instance.answers_to(name) for name in cancelled if name):
            found[instance.id] = "somebody cancelled it"
        elif end and end["action"] == "stop" and end["ended_at"] > since:
            found[instance.id] = end["reason"]
        elif _was_cancelled_by_hand(plan, instance, observed):
            found[instance.id] = "its job was cancelled with scancel"
    return found


def _was_cancelled_by_hand(plan: Plan, instance: Instance, observed: Observed) -> bool:
    """Whether its job was cancelled though nothing that it comes after has failed."""
    status = observed.jobs.get(instance.id)
    upstream = [observed.jobs[n].state for n in plan.upstream(instance.id) if n in observed.jobs]
    has_failed = any(s.is_final and s is not JobState.SUCCEEDED for s in upstream)
    return status is not None and status.state is JobState.CANCELLED and not has_failed


def settled(
    run: RunFolder,
    executor: SlurmExecutor,
    timeout_s: float = SETTLE_TIMEOUT_S,
    look_every_s: float = LOOK_EVERY_S,
) -> Observed:
    """How the jobs stand, once the books know what the controller knew when it started this one.

    Raises BackendError when nobody has answered in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        observed = executor.observe([run])[run.name]
        is_late = time.monotonic() > deadline
        if observed.problem and is_late:
            raise BackendError(observed.problem)
        ends = {status.state for status in observed.jobs.values() if status.state.is_final}
        if is_late or ends - {JobState.SUCCEEDED}:
            return observed
        time.sleep(min(look_every_s, max(deadline - time.monotonic(), 0.01)))


if __name__ == "__main__":
    sys.exit(main())
