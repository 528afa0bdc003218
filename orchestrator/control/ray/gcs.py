"""What a Ray head is asked and told by those beside it, in Ray's own protocol.

Ray is imported only here, at the first question: it is installed where heads and nodes are.
"""

from __future__ import annotations

from typing import Any, Literal

_TIMEOUT_S = 5.0

Reason = Literal["PREEMPTION", "IDLE_TERMINATION"]
"""Why a node is drained. Ray may refuse the second, where the node is in use again."""


class Gcs:
    """A head's record of its nodes. Every question may raise whatever Ray raises."""

    def __init__(self, address: str) -> None:
        """``address``: ``host:port`` of the head's Ray."""
        from ray import _raylet
        from ray.core.generated import autoscaler_pb2

        raylet: Any = _raylet  # neither has types
        self._protocol: Any = autoscaler_pb2
        self._client: Any = raylet.GcsClient(address=address)

    @property
    def idle(self) -> int:
        """The number of the state of nodes that do nothing."""
        return int(self._protocol.NodeStatus.IDLE)

    def nodes(self) -> Any:
        """The nodes: a list of Ray's NodeState."""
        reply = self._protocol.GetClusterStatusReply()
        reply.ParseFromString(self._client.get_cluster_status(timeout_s=_TIMEOUT_S))
        return reply.cluster_resource_state.node_states

    def drain(self, node_id: str, reason: Reason, message: str, ends_at_ms: int) -> str:
        """Give a node nothing new; why that is refused, empty where it is not.

        ``node_id``: in hex; Ray takes any other for no node, without a word. ``ends_at_ms``: since
        the epoch; 0 for no end.
        """
        number = self._protocol.DrainNodeReason.Value(f"DRAIN_NODE_REASON_{reason}")
        taken, why_not = self._client.drain_node(node_id, number, message, ends_at_ms)
        return "" if taken else why_not or "no reason is told"

    def withdraw_requests(self) -> None:
        """Take back what programs have asked of the autoscaler, which would outlive them."""
        self._client.request_cluster_resource_constraint([], [], [], timeout_s=_TIMEOUT_S)
