"""What an attempt's end means, and what to do about it: one pure function.

In: how it ended, its last log lines, how far it got, what was tried before. Out: a cause and one of
these actions:

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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.errors import ExitCode
from orchestrator.plan.execution import DEVICE_OOM, HOST_OOM

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
    log_tail: str = ""
    node: str = ""
    others: bool = False
    """Whether it is to blame alone: other nodes of the same attempt lived on."""
    stopped: str = ""
    """Cause, when the resources were taken away: ``preempted`` or ``walltime``."""


@dataclass(frozen=True, kw_only=True)
class Past:
    """What was tried before, newest last: ``(cause, progress, node)`` of each attempt."""

    attempts: Sequence[tuple[str, float, str]] = ()
    max_attempts: int = 20
    max_without_progress: int = 2


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the end meant, and what comes next."""

    cause: str
    action: Action
    reason: str


_NODE_CAUSES = frozenset({"worker_lost", "killed", "comm_hang"})
"""What a broken node looks like; an exception in Python looks alike on all of them."""

FREE_CAUSES = frozenset({"preempted", "walltime", "node_lost"})

_SIGNS: tuple[tuple[str, str], ...] = (
    ("host_oom", HOST_OOM),  # before the device's: what Ray says of it looks like both
    ("device_oom", DEVICE_OOM),
    ("comm_hang", r"comm_hang:|Watchdog caught collective operation timeout"),
    ("nonfinite", r"nonfinite:"),
    (
        "storage",
        r"No space left on device|Disk quota exceeded|Read-only file system|Stale file handle|"
        r"Input/output error|the store is out of reach|checkpoints verifies",
    ),
    ("bad_data", r"bad_data:"),
    (
        "worker_lost",
        r"ActorDiedError|WorkerCrashedError|worker process has died|died unexpectedly|"
        r"ended by signal|"
        r"Connection closed by peer",
    ),
    (
        "ray_lost",
        r"Failed to connect to GCS|GCS.*unavailable|[Rr]aylet (has )?(died|crashed)|"
        r"Ray is not available",
    ),
)


_REMEDIES = {
    "comm_hang": "a rank hung; the stacks of all ranks are in the attempt's folder",
    "nonfinite": "back to the last checkpoint and around the batches that gave no finite loss",
    "storage": "the store failed; free space there, or look at its mount",
    "host_oom": "the node ran out of memory; raise mem_gb or lower the number of workers",
    "worker_lost": "a process was lost",
    "killed": "the driver was killed",
    "node_lost": "the node was lost",
    "preempted": "asked to leave",
    "walltime": "the job's time was over",
}
"""What each cause means, and what its user might do; shown with the decision."""


def decide(ending: Ending, past: Past) -> Decision:
    """The cause of an end and the action it calls for."""
    if ending.complete:
        return Decision(cause="", action="done", reason="the artifact is complete")
    if ending.exit_code == ExitCode.LEASE_HELD:
        return Decision(
            cause="lease_held", action="wait", reason="another attempt works on this key"
        )
    cause = _cause(ending)
    if cause == "bad_request":
        return Decision(
            cause=cause, action="stop", reason="the request is wrong; trying again would not help"
        )
    if cause == "bad_data":
        return Decision(
            cause=cause, action="stop", reason="the data are wrong; trying again would not help"
        )
    if _spent(ending, cause, past) >= past.max_attempts:
        return Decision(
            cause=cause, action="stop", reason=f"budget of {past.max_attempts} attempts is spent"
        )
    if cause == "device_oom":  # each time with half; a sequence that does not fit is a bad request
        return Decision(
            cause=cause, action="smaller", reason="half the micro-batch, the same global batch"
        )
    stuck = _ends_in_a_row(ending, cause, past)
    if stuck >= past.max_without_progress and _is_to_blame(ending, cause, past, stuck):
        return Decision(
            cause=cause, action="elsewhere", reason=f"node {ending.node} failed {stuck} times"
        )
    if stuck >= past.max_without_progress and cause != "preempted":
        return Decision(
            cause=cause, action="stop", reason=f"ended {stuck} times as {cause} without progress"
        )
    if _fails_alone(ending, past):
        return Decision(cause=cause, action="elsewhere", reason=f"node {ending.node} fails alone")
    remedy = _REMEDIES.get(cause, "see the end of its log")
    return Decision(
        cause=cause, action="resume", reason=f"{cause}: {remedy}; goes on where it stopped"
    )


def _cause(ending: Ending) -> str:
    if ending.stopped or ending.exit_code == ExitCode.STOPPED:
        return ending.stopped or "preempted"
    if ending.exit_code is None:
        return "node_lost"
    if ending.exit_code < 0:
        return "killed"
    if ending.exit_code == ExitCode.BAD_REQUEST:
        return "bad_request"
    if ending.exit_code == ExitCode.UNREACHABLE:
        return "storage"
    for cause, pattern in _SIGNS:
        if re.search(pattern, ending.log_tail):
            return cause
    return "unknown" if ending.exit_code == 0 else "error"


def _spent(ending: Ending, cause: str, past: Past) -> int:
    """Attempts that count against the budget: free causes do not while they make progress."""
    ends = [*past.attempts, (cause, ending.progress, ending.node)]
    before = [0.0, *(progress for _, progress, _ in ends)]
    return sum(
        c not in FREE_CAUSES or progress <= b
        for (c, progress, _), b in zip(ends, before, strict=False)
    )


def _ends_in_a_row(ending: Ending, cause: str, past: Past) -> int:
    """How often in a row, this end included, the same cause struck at the same progress."""
    count = 1
    for earlier_cause, progress, _ in reversed(past.attempts):
        if earlier_cause != cause or progress < ending.progress:
            break
        count += 1
    return count


def _is_to_blame(ending: Ending, cause: str, past: Past, stuck: int) -> bool:
    """Whether it was the same node of several each time, and by what a node may cause."""
    nodes = {node for _, _, node in past.attempts[len(past.attempts) - stuck + 1 :]}
    return ending.others and cause in _NODE_CAUSES and nodes == {ending.node}


def _fails_alone(ending: Ending, past: Past) -> bool:
    """Whether this node has failed before while another node got further."""
    here = [progress for _, progress, node in past.attempts if node == ending.node]
    elsewhere = [progress for _, progress, node in past.attempts if node != ending.node]
    return bool(here) and any(progress > max(here) for progress in elsewhere)
