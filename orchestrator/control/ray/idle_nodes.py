"""Nodes with accelerators that nothing uses: said, and given back, as they cost as much as others.

An autoscaler ends idle nodes by itself, but for those that somebody has asked for and forgotten:
requests that are made to Ray itself outlive the program that made them. Nodes of types that the
cluster file does not name are others' business: nobody would start them again.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from orchestrator.control.ray.gcs import Gcs, Node
from orchestrator.spec.cluster import Ray

_LOOK_EVERY_S = 60.0
_REASON = "no worker and no rank of a run for too long"

log = logging.getLogger(__name__)


class IdleNodes:
    """Called now and then by who supervises a run; looks once a minute."""

    def __init__(self, address: str, ray: Ray, *, every_s: float = _LOOK_EVERY_S) -> None:
        """``address``: ``host:port`` of the head's Ray."""
        self._address, self._every_s = address, every_s
        self._after_s = 60 * ray.idle_release_min
        self._least = least_of(ray)
        self._looked_at = -math.inf
        self._said = ""

    def __call__(self) -> None:
        """Give back what has idled for too long; never raises."""
        now = time.monotonic()
        if not self._least or now - self._looked_at < self._every_s:
            return
        self._looked_at = now
        try:
            self._give_back()
        except Exception as error:  # noqa: BLE001 (Ray raises of every kind; the run goes on)
            if str(error) != self._said:
                log.warning("ray: idle nodes are not known: %s", error)
            self._said = str(error)

    def _give_back(self) -> None:
        head = Gcs(self._address)
        if not (idle := idle_nodes(head.nodes(), self._after_s, self._least)):
            return
        head.withdraw_requests()
        for node in idle:
            refused = head.drain(node.id, "IDLE_TERMINATION", _REASON, 0)
            end = "is in use again" if refused else "given back"
            log.warning("ray: %s: %s", in_words(node), end)


def least_of(ray: Ray) -> dict[str, int]:
    """How many nodes of each type stay, whatever they do."""
    return {name: t.min_nodes for name, t in ray.node_types.items()}


def idle_nodes(nodes: Sequence[Node], after_s: float, least: Mapping[str, int]) -> list[Node]:
    """Those with accelerators that have idled for too long.

    ``least``: how many of each type stay whatever they do; other types are left alone.
    """
    spare = Counter(node.type for node in nodes)
    spare.subtract(least)
    found = []
    for node in nodes:
        is_idle = node.gpus and node.idle_s > after_s
        if is_idle and node.type in least and spare[node.type] > 0:
            spare[node.type] -= 1
            found.append(node)
    return found


def in_words(node: Node) -> str:
    """What it is, and for how long it has idled."""
    return f"a {node.type} with {node.gpus:g} GPUs has idled for {node.idle_s / 60:.0f} min"
