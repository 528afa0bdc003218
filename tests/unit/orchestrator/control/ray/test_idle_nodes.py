"""Which nodes have idled for too long; that they are given back needs an autoscaler."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from ray.core.generated import autoscaler_pb2

from orchestrator.control.ray.idle_nodes import IdleNodes, idle_nodes
from orchestrator.spec.cluster import NodeType, Ray

protocol: Any = autoscaler_pb2
TYPES = {"gpu": NodeType(mem_gb=1, gpus=8)}


ROWS = [
    (b"\x01", "gpu", protocol.NodeStatus.IDLE, {"GPU": 8.0, "CPU": 4.0}, 700_000),
    (b"\x02", "gpu", protocol.NodeStatus.IDLE, {"GPU": 8.0}, 500_000),
    (b"\x03", "gpu", protocol.NodeStatus.RUNNING, {"GPU": 8.0}, 700_000),
    (b"\x04", "cpu", protocol.NodeStatus.IDLE, {"CPU": 8.0}, 700_000),
    (b"\x05", "gpu", protocol.NodeStatus.IDLE, {"GPU": 8.0}, 800_000),
    (b"\x06", "theirs", protocol.NodeStatus.IDLE, {"GPU": 8.0}, 800_000),
]


@pytest.mark.parametrize(
    ("least", "found"),
    [
        ({"gpu": 0, "cpu": 0}, {"01": "12 min", "05": "13 min"}),
        ({"gpu": 3}, {"01": "12 min"}),
        ({"gpu": 4}, {}),
        ({"cpu": 0}, {}),
        ({}, {}),
    ],
)
def test_only_nodes_with_accelerators_of_our_types_that_nobody_misses(
    least: dict[str, int], found: dict[str, str]
) -> None:
    nodes = [
        protocol.NodeState(
            node_id=node_id,
            ray_node_type_name=name,
            status=status,
            total_resources=total,
            idle_duration_ms=idle_ms,
        )
        for node_id, name, status, total, idle_ms in ROWS
    ]
    told = idle_nodes(nodes, 600.0, least, protocol.NodeStatus.IDLE)
    assert told == {n: f"a gpu with 8 GPUs has idled for {idle}" for n, idle in found.items()}


def test_a_head_that_is_away_is_said_once_and_raises_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    idle = IdleNodes("no address", Ray(node_types=TYPES), every_s=0.0)
    with caplog.at_level(logging.WARNING):
        idle(), idle()
    assert len([r for r in caplog.records if "idle nodes are not known" in r.message]) == 1


def test_a_cluster_whose_types_are_not_named_is_left_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        IdleNodes("no address", Ray(), every_s=0.0)()
    assert caplog.records == [], "nobody was asked"
