"""What a head is asked; that it answers needs a Ray cluster (a drill, `autoscaling.py`)."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from ray.core.generated import autoscaler_pb2

from orchestrator.control.ray.gcs import Gcs, Node, nodes_in


def test_ray_is_imported_at_the_first_question() -> None:
    code = "import sys, orchestrator.control.ray.gcs; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_address_of_no_head_is_an_error_at_once() -> None:
    with pytest.raises(ValueError, match="no address"):
        Gcs("no address")


def test_what_is_at_work_does_not_idle_whatever_its_clock_says() -> None:
    protocol: Any = autoscaler_pb2
    common = {"ray_node_type_name": "gpu", "idle_duration_ms": 700_000}
    reply = protocol.GetClusterStatusReply()
    reply.cluster_resource_state.node_states.extend(
        [
            protocol.NodeState(
                node_id=b"\x01",
                status=protocol.NodeStatus.IDLE,
                total_resources={"GPU": 8.0, "CPU": 4.0},
                **common,
            ),
            protocol.NodeState(node_id=b"\xab", status=protocol.NodeStatus.RUNNING, **common),
        ]
    )
    told = nodes_in(reply, protocol.NodeStatus.IDLE)
    assert told == [Node("01", "gpu", 8.0, 700.0), Node("ab", "gpu", 0.0, 0.0)]
