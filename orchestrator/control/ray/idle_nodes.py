"""Nodes with accelerators that nothing uses: said, and given back, as they cost as much as others.

An autoscaler ends idle nodes by itself, but for those that somebody has asked for and forgotten:
requests that are made to Ray itself outlive the program that made them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Any

_LOOK_EVERY_S = 60.0
_TIMEOUT_S = 5.0
_REASON = "no worker and no rank of a run for too long"

log = logging.getLogger(__name__)


class IdleNodes:
    """Called now and then by who supervises a run; looks once a minute."""

    def __init__(self, address: str, after_s: float, *, every_s: float = _LOOK_EVERY_S) -> None:
        """``address``: ``host:port`` of the head's Ray. ``after_s``: how long nodes may idle."""
        self._address, self._after_s, self._every_s = address, after_s, every_s
        self._looked_at = -math.inf
        self._said = ""

    def __call__(self) -> None:
        """Give back what has idled for too long; never raises."""
        now = time.monotonic()
        if now - self._looked_at < self._every_s:
            return
        self._looked_at = now
        try:
            self._give_back()
        except Exception as error:  # noqa: BLE001 (Ray raises of every kind; the run goes on)
            if str(error) != self._said:
                log.warning("ray: idle nodes are not known: %s", error)
            self._said = str(error)

    def _give_back(self) -> None:
        from ray._raylet import GcsClient  # type: ignore[attr-defined]  # it has no types
        from ray.core.generated import autoscaler_pb2

        protocol: Any = autoscaler_pb2
        head = GcsClient(address=self._address)
        reply = protocol.GetClusterStatusReply()
        reply.ParseFromString(head.get_cluster_status(timeout_s=_TIMEOUT_S))
        idle = idle_nodes(reply.cluster_resource_state, self._after_s, protocol.NodeStatus.IDLE)
        if not idle:
            return
        head.request_cluster_resource_constraint([], [], [], timeout_s=_TIMEOUT_S)
        reason = protocol.DrainNodeReason.Value("DRAIN_NODE_REASON_IDLE_TERMINATION")
        for node_id, what in idle.items():
            taken, _ = head.drain_node(node_id, reason, _REASON, 0)
            log.warning("ray: %s: %s", what, "given back" if taken else "in use again")


def idle_nodes(state: Any, after_s: float, idle: int) -> Mapping[str, str]:
    """Ids, in hex, of nodes with accelerators that have idled for too long, and what they are.

    ``state``: Ray's ClusterResourceState. ``idle``: its number for nodes that do.
    """
    found = {}
    for node in state.node_states:
        gpus, idle_s = node.total_resources.get("GPU", 0.0), node.idle_duration_ms / 1000
        if node.status == idle and gpus and idle_s > after_s:
            what = f"a {node.ray_node_type_name or 'node'} with {gpus:g} GPUs"
            found[node.node_id.hex()] = f"{what} has idled for {idle_s / 60:.0f} min"
    return found
