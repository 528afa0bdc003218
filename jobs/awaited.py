"""What a stage waits for on a Ray cluster whose nodes come as they are asked for, in Ray's words.

Actors and placement groups without a place are what an autoscaler acts upon. Here is only told why
they still have none, and for how long that may go on.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jobs.attempt import Attempt
from jobs.ray_nodes import cluster_state
from orchestrator.errors import Cause, RunFailedError
from orchestrator.ledger.refusals import MONITOR_LOG, refusals

SHOWN_AFTER_S = 10.0
ASKED_EVERY_S = 10.0
_ANSWER_TIMEOUT_S = 5.0

log = logging.getLogger(__name__)


class Awaited:
    """Workers that have no place yet: since when, why, and until when they may."""

    def __init__(
        self,
        what: str,
        *,
        deadline_s: float = math.inf,
        note: Callable[[str], None] = lambda _: None,
        why: Callable[[], str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``what`` begins the message of an end. ``note`` is told of each new reason, and of none.

        ``deadline_s``: how long the work may wait while too few are there to do it, by ``clock``.
        """
        self._what, self._deadline_s, self._note = what, deadline_s, note
        self._why, self._clock = why or why_waiting, clock
        self._since: float | None = None
        self._needed_since: float | None = None
        self._asked_at = -math.inf
        self._reason = ""

    def look(self, num_waiting: int, *, is_held_up: bool) -> None:
        """Take in how many wait, and whether the work waits for them; about once a second.

        Raises RunFailedError with Ray's reason when it has done so for too long.
        """
        now = self._clock()
        self._since = _first(self._since, now) if num_waiting else None
        is_needed = is_held_up and num_waiting > 0
        self._needed_since = _first(self._needed_since, now) if is_needed else None
        if self._since is None:
            self._say("")
            return
        is_over = self._needed_since is not None and now - self._needed_since > self._deadline_s
        is_time = now - self._since > SHOWN_AFTER_S and now - self._asked_at > ASKED_EVERY_S
        if is_over or is_time:
            self._asked_at = now
            self._say(f"{num_waiting} of its workers: {self._why()}")
        if is_over:
            raise RunFailedError(
                f"{self._what}: no node came in {self._deadline_s / 60:g} min for "
                f"{self._reason}; see to the cluster's nodes and limits, or raise "
                "ray.pending_deadline_min, then resume",
                cause=Cause.NO_NODES,
            )

    def _say(self, reason: str) -> None:
        if reason == self._reason:
            return
        self._reason = reason
        if reason:
            log.info("waits for %s", reason)
        try:
            self._note(reason)
        except OSError as error:  # the store may be back at the next word
            log.warning("the attempt's folder is out of reach: %s", error)


def _first(since: float | None, now: float) -> float:
    return now if since is None else since


def awaited(attempt: Attempt) -> Awaited:
    """For the workers or ranks of an attempt, shown with it."""
    return Awaited(
        attempt.artifacts[0].stage,
        deadline_s=attempt.cluster.pending_deadline_s,
        note=attempt.record.note_waits,
    )


def why_waiting() -> str:
    """Why what was asked of this process's Ray cluster is not there; never raises."""
    try:
        state, logs = cluster_state(_ANSWER_TIMEOUT_S)
        return in_words(state, refusals(logs / MONITOR_LOG))
    except Exception as error:  # noqa: BLE001 (Ray raises of every kind, and this is only told)
        return f"Ray does not say why ({error})"


def in_words(reply: Any, refused: Mapping[str, str]) -> str:
    """What Ray's state of the cluster says of demand that is not met.

    ``reply``: GetClusterStatusReply. ``refused``: node type to what the cloud last said of it.
    """
    scaler, cluster = reply.autoscaling_state, reply.cluster_resource_state
    words = [
        *_refused(scaler.failed_instance_requests, refused),
        *_counted("asked for", scaler.pending_instance_requests),
        *_counted("starting", scaler.pending_instances),
        *(f"no room for {_bundle(r)}" for r in scaler.infeasible_resource_requests),
        *(
            f"no room for {_bundle(r)} and what goes with it"
            for gang in scaler.infeasible_gang_resource_requests
            for r in _first_of(gang)
        ),
    ]
    if words:
        return "; ".join(dict.fromkeys(words))
    waiting = [d.request for d in cluster.pending_resource_requests]
    what = f" for {_bundle(waiting[0])}" if waiting else ""
    return f"no room{what} on the cluster's {len(cluster.node_states)} nodes"


def _refused(failed: Iterable[Any], refused: Mapping[str, str]) -> Iterator[str]:
    for name in dict.fromkeys(request.ray_node_type_name for request in failed):
        said = [r.reason for r in failed if r.ray_node_type_name == name and r.reason]
        words = refused.get(name) or next(reversed(said), "")
        yield f"the cloud gives no {name}" + (f" ({words})" if words else "")


def _counted(how: str, instances: Iterable[Any]) -> Iterator[str]:
    counts: Counter[str] = Counter()
    for instance in instances:
        counts[instance.ray_node_type_name] += getattr(instance, "count", 1)
    for name, number in counts.items():
        yield f"{number} {name} {how}"


def _first_of(gang: Any) -> list[Any]:
    """The first request of those that must be met together."""
    chosen = [r for selector in gang.bundle_selectors for r in selector.resource_requests]
    return [*chosen, *gang.requests][:1]


def _bundle(request: Any) -> str:
    """Such as ``CPU 8, GPU 1``."""
    return ", ".join(
        f"{name} {amount:g}" for name, amount in sorted(request.resources_bundle.items())
    )
