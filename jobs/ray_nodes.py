"""What this process's Ray cluster says of its nodes: which have gone, and which are about to go."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

_drained: set[str] = set()
"""Hosts that a drill had this process drain."""

log = logging.getLogger(__name__)

NOTICE_S = 30.0
"""What clouds give at least, from the notice to the end."""
_LOOK_EVERY_S = 2.0
ANOTHER_HEAD = "WrongClusterID"
"""What Ray says when a head is asked by somebody who had joined another."""


class DrainingNodes:
    """Ids of the nodes that are about to go, looked for now and then."""

    def __init__(self) -> None:
        self._ids: frozenset[str] = frozenset()
        self._looked_at = float("-inf")

    def ids(self) -> frozenset[str]:
        """As they were at most some seconds ago."""
        now = time.monotonic()
        if now - self._looked_at > _LOOK_EVERY_S:
            self._looked_at = now
            try:
                self._ids = frozenset(draining_nodes())
            except Exception as error:  # noqa: BLE001 (a head that is away is noticed elsewhere)
                log.warning("the head does not say which nodes are about to go: %s", error)
        return self._ids


def cluster_state(timeout_s: float) -> tuple[Any, Path]:
    """Ray's GetClusterStatusReply, and the folder of its logs on this machine.

    It tells what the autoscaler does about demand (ray.autoscaler.v2.sdk drops half of that).
    """
    from ray._private import worker
    from ray.core.generated import autoscaler_pb2

    node: Any = worker.global_worker.node
    protocol: Any = autoscaler_pb2
    reply = protocol.GetClusterStatusReply()
    reply.ParseFromString(node.get_gcs_client().get_cluster_status(timeout_s=timeout_s))
    return reply, Path(node.get_logs_dir_path())


def is_another_head(timeout_s: float) -> bool:
    """Whether a head answers that is not the one which this process has joined.

    One that was started anew at the same address remembers nothing. Ray neither ends nor tells who
    waits for nodes, actors or results of the old one.
    """
    from ray._private import worker

    process: Any = worker.global_worker
    try:
        process.gcs_client.check_alive([], timeout_s)
    except Exception as error:  # noqa: BLE001 (Ray raises of several kinds; one away is noticed elsewhere)
        return ANOTHER_HEAD in str(error)
    return False


def draining_nodes() -> dict[str, int]:
    """Ids of the nodes that are about to go, and when, in milliseconds since the epoch.

    Ray gives nothing new to them, and ends nothing there: a notice of a cloud, or an idle node.
    """
    from ray._private.state import state

    found: dict[str, int] = state.get_draining_nodes()
    return found


def draining_hosts() -> set[str]:
    """Names of the hosts that this process's Ray cluster is about to lose; empty without one."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return set()
    draining = draining_nodes()
    if not draining:
        return set()
    return {n["NodeManagerHostname"] for n in ray.nodes() if n["NodeID"] in draining}


def nodes() -> list[dict[str, Any]]:
    """Ray's table of the nodes that are and were in the cluster."""
    import ray

    table: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray has no types
    return table


def dead_nodes() -> set[str]:
    """Ids of the nodes that have left the Ray cluster."""
    return {node["NodeID"] for node in nodes() if not node["Alive"]}


def drain_host(host: str) -> None:
    """Give up a node of this process's Ray cluster, as its cloud's notice does; once is enough."""
    import ray

    if host in _drained or not ray.is_initialized():
        return
    _drained.add(host)
    from ray._private import worker
    from ray.core.generated import autoscaler_pb2

    protocol: Any = autoscaler_pb2
    process: Any = worker.global_worker
    reason = protocol.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    ends_at_ms = int(1000 * (time.time() + NOTICE_S))
    ids = [n["NodeID"] for n in nodes() if n["Alive"] and n["NodeManagerHostname"] == host]
    with_ranks = [n for n in ids if n != process.current_node_id.hex()]  # the driver's own is none
    if with_ranks:
        process.node.get_gcs_client().drain_node(with_ranks[0], reason, "a drill", ends_at_ms)


def kill_node() -> None:
    """End this process's node of its Ray cluster as the end of a machine does: all at once."""
    raylets = [p for p in psutil.Process().parents() if p.name() == "raylet"]
    others = [c for p in raylets for c in (p, *p.children(recursive=True)) if c.pid != os.getpid()]
    for process in others:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    os.kill(os.getpid(), signal.SIGKILL)
