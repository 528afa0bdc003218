"""What a Ray head is asked and told by those beside it, in Ray's own protocol.

Ray is imported only here, at the first question: it is installed where heads and nodes are.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

_TIMEOUT_S = 5.0

Reason = Literal["PREEMPTION", "IDLE_TERMINATION"]
"""Why a node is drained. Ray may refuse the second, where the node is in use again."""


class Node(NamedTuple):
    """A node of the cluster, as the head knows it."""

    id: str
    """In hex."""
    type: str
    gpus: float
    """Accelerators on it."""
    idle_s: float
    """How long it has done nothing; 0 for one at work."""


class Gcs:
    """A head's record of its nodes. Every question may raise whatever Ray raises."""

    def __init__(self, address: str) -> None:
        """``address``: ``host:port`` of the head's Ray."""
        from ray import _raylet
        from ray.core.generated import autoscaler_pb2

        raylet: Any = _raylet  # neither has types
        self._protocol: Any = autoscaler_pb2
        self._client: Any = raylet.GcsClient(address=address)

    def nodes(self) -> list[Node]:
        """The nodes that are there."""
        reply = self._protocol.GetClusterStatusReply()
        reply.ParseFromString(self._client.get_cluster_status(timeout_s=_TIMEOUT_S))
        return nodes_in(reply, self._protocol.NodeStatus.IDLE)

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


def nodes_in(reply: Any, idle: int) -> list[Node]:
    """The nodes of Ray's GetClusterStatusReply; ``idle``: its number for those at no work."""
    return [
        Node(
            id=state.node_id.hex(),
            type=state.ray_node_type_name,
            gpus=state.total_resources.get("GPU", 0.0),
            idle_s=state.idle_duration_ms / 1000 if state.status == idle else 0.0,
        )
        for state in reply.cluster_resource_state.node_states
    ]
