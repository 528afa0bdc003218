"""Which nodes have idled for too long; that they are given back needs an autoscaler."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from ray.core.generated import autoscaler_pb2

from orchestrator.control.ray.idle_nodes import IdleNodes, idle_nodes

protocol: Any = autoscaler_pb2


def test_only_nodes_with_accelerators_that_have_idled_for_long() -> None:
    rows = [
        (b"\x01", protocol.NodeStatus.IDLE, {"GPU": 8.0, "CPU": 4.0}, 700_000),
        (b"\x02", protocol.NodeStatus.IDLE, {"GPU": 8.0}, 500_000),
        (b"\x03", protocol.NodeStatus.RUNNING, {"GPU": 8.0}, 700_000),
        (b"\x04", protocol.NodeStatus.IDLE, {"CPU": 8.0}, 700_000),
    ]
    nodes = [
        protocol.NodeState(
            node_id=node_id,
            ray_node_type_name="gpu",
            status=status,
            total_resources=total,
            idle_duration_ms=idle_ms,
        )
        for node_id, status, total, idle_ms in rows
    ]
    state = protocol.ClusterResourceState(node_states=nodes)
    found = idle_nodes(state, 600.0, protocol.NodeStatus.IDLE)
    assert found == {"01": "a gpu with 8 GPUs has idled for 12 min"}


def test_a_head_that_is_away_is_said_once_and_raises_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    idle = IdleNodes("no address", 1.0, every_s=0.0)
    with caplog.at_level(logging.WARNING):
        idle(), idle()
    assert len([r for r in caplog.records if "idle nodes are not known" in r.message]) == 1
