"""What an attempt's end means, and what to do about it: one pure function.

In: how it ended, the cause its driver recorded, its last log lines, how far it got, what was tried
before. Out: a cause and one of these actions:

    done        the artifact is there
    wait        another run works on the same key
    resume      start again where it stopped; free while progress is made
    elsewhere   start again, not on that node
    smaller     start again with half the micro-batch and the same global batch
    stop        trying again would end the same way

Not knowing is never "finished".
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.errors import DEVICE_OOM, HOST_OOM, STORAGE_WORDS, Cause, ExitCode

Action = Literal["done", "wait", "resume", "elsewhere", "smaller", "stop"]


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How one attempt ended."""

    exit_code: int | None
    """None when nobody saw it end; negative when a signal ended it."""
    complete: bool
    """Whether the artifact's manifest is there now."""
    progress: float
    """Work done so far, in any unit that grows with it: shards or steps in the store."""
    cause: Cause | None = None
    """What its driver has recorded; None when it could not, or nothing went wrong there."""
    log_tail: str = ""
    """Read only for words that are not ours: of NCCL, torch, the kernel and Ray."""
    node: str = ""
    others: bool = False
    """Whether it is to blame alone: other nodes of the same attempt lived on."""
    has_lost_ray: bool = False
    """Whether the Ray session that it was started in has gone away."""
    stopped: Cause | None = None
    """When the resources were taken away: ``preempted`` or ``walltime``."""


@dataclass(frozen=True, kw_only=True)
class Past:
    """What was tried before, newest last: ``(cause, progress, node)`` of each attempt."""

    attempts: Sequence[tuple[Cause, float, str]] = ()
    max_attempts: int = 20
    max_without_progress: int = 2


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the end meant, and what comes next."""

    cause: Cause | None
    """None when nothing went wrong."""
    action: Action
    reason: str


FREE_CAUSES = frozenset({Cause.PREEMPTED, Cause.WALLTIME, Cause.NODE_LOST, Cause.MOVED})

HOPELESS_CAUSES = {
    Cause.BAD_REQUEST: "the request is wrong; trying again would not help",
    Cause.BAD_DATA: "the data are wrong; trying again would not help",
    Cause.LIMIT: "the cluster file allows no more; `orchestrator resume RUN --cluster FILE` with "
    "higher limits goes on",
    Cause.NO_NODES: "the cluster gave no nodes in time; `orchestrator resume RUN` waits anew",
}
"""Causes that stop a stage at once, and why: something outside of the run must change first."""

_NODE_CAUSES = frozenset({Cause.WORKER_LOST, Cause.KILLED, Cause.COMM_HANG})
"""What a broken node looks like; an exception in Python looks alike on all of them."""

_CRASHES = frozenset({signal.SIGABRT, signal.SIGBUS, signal.SIGSEGV})
"""Signals by which a process ends itself, after it has said why: C++ libraries abort where memory
is refused, and a bus error is a mapped file that its disk did not give."""

_VAGUE_CAUSES = frozenset({Cause.ERROR, Cause.WORKER_LOST})
"""A driver that records these has seen something fail, and the log may say of what."""

_CAUSE_BY_EXIT_CODE: dict[int | None, Cause] = {
    None: Cause.NODE_LOST,
    ExitCode.BAD_REQUEST: Cause.BAD_REQUEST,
    ExitCode.UNREACHABLE: Cause.STORAGE,
}

_FOREIGN_WORDS: tuple[tuple[Cause, str], ...] = (
    (Cause.HOST_OOM, HOST_OOM),  # before the device's: what Ray says of it looks like both
    (Cause.DEVICE_OOM, DEVICE_OOM),
    (Cause.COMM_HANG, r"Watchdog caught collective operation timeout"),
    (Cause.STORAGE, STORAGE_WORDS),
    (Cause.RAY_LOST, r"WrongClusterID"),  # a head that was started anew; its workers are lost too
    (
        Cause.WORKER_LOST,
        r"ActorDiedError|WorkerCrashedError|worker process has died|died unexpectedly|"
        r"Connection closed by peer",
    ),
    (
        Cause.RAY_LOST,
        r"Failed to connect to GCS|GCS.*unavailable|[Rr]aylet (has )?(died|crashed)|"
        r"Ray is not available",
    ),
)


_REMEDIES = {
    Cause.COMM_HANG: "a rank hung; the stacks of all ranks are in the attempt's folder",
    Cause.NONFINITE: "back to the last checkpoint and around the batches that gave no finite loss",
    Cause.STORAGE: "the store or a node's disk failed; free space there, or look at its mount",
    Cause.NETWORK: "a model's hub was away; check the network, or name a folder in models",
    Cause.RAY_LOST: "the Ray session went away",
    Cause.HOST_OOM: "the node ran out of memory; raise mem_gb or lower the number of workers",
    Cause.WORKER_LOST: "a process was lost",
    Cause.KILLED: "the driver was killed",
    Cause.NODE_LOST: "the node was lost",
    Cause.PREEMPTED: "asked to leave",
    Cause.MOVED: "the run has gone to another store",
    Cause.WALLTIME: "the job's time was over",
}
"""What each cause means, and what its user might do; shown with the decision."""


def remedy_of(cause: Cause) -> str:
    """What a cause means, and what its user might do."""
    return HOPELESS_CAUSES.get(cause) or _REMEDIES.get(cause, "see the end of its log")


def decide(ending: Ending, past: Past) -> Decision:
    """The cause of an end and the action it calls for."""
    if ending.complete:
        return Decision(cause=None, action="done", reason="the artifact is complete")
    if ending.exit_code == ExitCode.LEASE_HELD:
        return Decision(
            cause=Cause.LEASE_HELD, action="wait", reason="another attempt works on this key"
        )
    cause = _cause(ending)
    action, reason = _action(ending, cause, past)
    return Decision(cause=cause, action=action, reason=reason)


def _action(ending: Ending, cause: Cause, past: Past) -> tuple[Action, str]:
    if cause in HOPELESS_CAUSES:
        return "stop", HOPELESS_CAUSES[cause]
    if _spent(ending, cause, past) >= past.max_attempts:
        return "stop", f"budget of {past.max_attempts} attempts is spent"
    if cause is Cause.DEVICE_OOM:  # until a single sequence does not fit: that is a bad request
        return "smaller", "half the micro-batch, the same global batch"
    stuck = _ends_in_a_row(ending, cause, past)
    if stuck >= past.max_without_progress and _is_to_blame(ending, cause, past, stuck):
        return "elsewhere", f"node {ending.node} failed {stuck} times"
    if stuck >= past.max_without_progress and cause is not Cause.PREEMPTED:
        return "stop", f"ended {stuck} times as {cause} without progress"
    if _fails_alone(ending, past):
        return "elsewhere", f"node {ending.node} fails alone"
    return "resume", f"{cause}: {remedy_of(cause)}; goes on where it stopped"


def _cause(ending: Ending) -> Cause:
    """The first that knows: who took the resources, the driver, the exit code, foreign words."""
    code = ending.exit_code
    if ending.stopped or code == ExitCode.STOPPED:
        return ending.stopped or Cause.PREEMPTED
    if ending.cause and ending.cause not in _VAGUE_CAUSES:
        return ending.cause
    if ending.has_lost_ray:
        return Cause.RAY_LOST
    if code in _CAUSE_BY_EXIT_CODE:
        return _CAUSE_BY_EXIT_CODE[code]
    if code is not None and code < 0 and -code not in _CRASHES:
        return Cause.KILLED
    if said := _said(ending.log_tail):
        return said
    if code is not None and code < 0:
        return Cause.STORAGE if -code == signal.SIGBUS else Cause.KILLED
    return ending.cause or (Cause.ERROR if code else Cause.UNKNOWN)


def _said(log_tail: str) -> Cause | None:
    """What words that are not ours tell; None for nothing."""
    found = (c for c, pattern in _FOREIGN_WORDS if re.search(pattern, log_tail, re.MULTILINE))
    return next(found, None)


def _spent(ending: Ending, cause: Cause, past: Past) -> int:
    """Attempts that count against the budget: free causes do not while they make progress."""
    ends = [*past.attempts, (cause, ending.progress, ending.node)]
    before = [0.0, *(progress for _, progress, _ in ends)]
    return sum(
        c not in FREE_CAUSES or progress <= b
        for (c, progress, _), b in zip(ends, before, strict=False)
    )


def _ends_in_a_row(ending: Ending, cause: Cause, past: Past) -> int:
    """How often in a row, this end included, the same cause struck at the same progress."""
    count = 1
    for earlier_cause, progress, _ in reversed(past.attempts):
        if earlier_cause != cause or progress < ending.progress:
            break
        count += 1
    return count


def _is_to_blame(ending: Ending, cause: Cause, past: Past, stuck: int) -> bool:
    """Whether it was the same node of several each time, and by what a node may cause."""
    nodes = {node for _, _, node in past.attempts[len(past.attempts) - stuck + 1 :]}
    return ending.others and cause in _NODE_CAUSES and nodes == {ending.node}


def _fails_alone(ending: Ending, past: Past) -> bool:
    """Whether this node has failed before while another node got further."""
    here = [progress for _, progress, node in past.attempts if node == ending.node]
    elsewhere = [progress for _, progress, node in past.attempts if node != ending.node]
    return bool(here) and any(progress > max(here) for progress in elsewhere)
