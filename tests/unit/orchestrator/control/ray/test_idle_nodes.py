"""Which nodes have idled for too long; that they are given back needs an autoscaler."""

from __future__ import annotations

import logging

import pytest

from orchestrator.control.ray.gcs import Node
from orchestrator.control.ray.idle_nodes import IdleNodes, idle_nodes, in_words
from orchestrator.spec.cluster import NodeType, Ray

TYPES = {"gpu": NodeType(mem_gb=1, gpus=8)}


NODES = [
    Node("01", "gpu", 8.0, 700.0),
    Node("02", "gpu", 8.0, 500.0),
    Node("03", "gpu", 8.0, 0.0),
    Node("04", "cpu", 0.0, 700.0),
    Node("05", "gpu", 8.0, 800.0),
    Node("06", "theirs", 8.0, 800.0),
]


@pytest.mark.parametrize(
    ("least", "found"),
    [
        ({"gpu": 0, "cpu": 0}, ["01", "05"]),
        ({"gpu": 3}, ["01"]),
        ({"gpu": 4}, []),
        ({"cpu": 0}, []),
        ({}, []),
    ],
)
def test_only_nodes_with_accelerators_of_our_types_that_nobody_misses(
    least: dict[str, int], found: list[str]
) -> None:
    assert [node.id for node in idle_nodes(NODES, 600.0, least)] == found


def test_words() -> None:
    assert in_words(NODES[0]) == "a gpu with 8 GPUs has idled for 12 min"


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
