"""What a stage waits for on a cluster whose nodes come as they are asked for."""

from __future__ import annotations

from typing import Any

import pytest
from ray.core.generated import autoscaler_pb2

from jobs.awaited import ASKED_EVERY_S, SHOWN_AFTER_S, Awaited, in_words
from orchestrator.errors import Cause, RunFailedError

protocol: Any = autoscaler_pb2
DEADLINE_S = 120.0


class Scene:
    """An `Awaited` at a clock of its own."""

    def __init__(self) -> None:
        self.now, self.noted, self.reason = 1000.0, [], "2 gpu starting"
        self.awaited = Awaited(
            "tokenize",
            deadline_s=DEADLINE_S,
            note=self.noted.append,
            why=lambda: self.reason,
            clock=lambda: self.now,
        )

    def look(self, waiting: int, after_s: float = 0.0, *, is_held_up: bool = True) -> None:
        self.now += after_s
        self.awaited.look(waiting, is_held_up=is_held_up)


def test_the_reason_is_told_once_it_has_taken_a_while_and_taken_back() -> None:
    scene = Scene()
    scene.look(2), scene.look(2, SHOWN_AFTER_S / 2)
    assert scene.noted == [], "an actor takes seconds to start anywhere"
    scene.look(2, SHOWN_AFTER_S), scene.look(2, ASKED_EVERY_S / 2)
    assert scene.noted == ["2 of its workers: 2 gpu starting"]
    scene.reason = "no room for CPU 64"
    scene.look(1, ASKED_EVERY_S * 2)
    assert scene.noted[-1] == "1 of its workers: no room for CPU 64"
    scene.look(0, 1)
    assert scene.noted[-1] == ""
    assert len(scene.noted) == 3


def test_the_deadlines_error_quotes_the_reason_and_counts_only_while_the_work_stands_still() -> (
    None
):
    scene = Scene()
    scene.look(1), scene.look(1, DEADLINE_S * 3, is_held_up=False)
    scene.look(1, 1), scene.look(1, DEADLINE_S - 1)
    scene.look(0, 1)
    scene.look(1, 1), scene.look(1, DEADLINE_S - 1)
    with pytest.raises(
        RunFailedError, match=r"no node came in 2 min for 1 of its workers: 2 gpu st"
    ) as e:
        scene.look(1, 2)
    assert e.value.cause is Cause.NO_NODES


def test_a_store_that_is_away_keeps_nobody_from_waiting() -> None:
    def refuse(_reason: str) -> None:
        raise OSError(5, "Input/output error")

    awaited = Awaited("train", note=refuse, why=lambda: "no room", clock=iter((0.0, 60.0)).__next__)
    awaited.look(1, is_held_up=True), awaited.look(1, is_held_up=True)


def reply(**state: Any) -> Any:
    of_scaler = protocol.AutoscalingState(**state)
    request = protocol.ResourceRequest(resources_bundle={"CPU": 2, "GPU": 1})
    demand = protocol.ResourceRequestByCount(request=request, count=3)
    cluster = protocol.ClusterResourceState(
        node_states=[protocol.NodeState(), protocol.NodeState()], pending_resource_requests=[demand]
    )
    return protocol.GetClusterStatusReply(
        autoscaling_state=of_scaler, cluster_resource_state=cluster
    )


def test_each_state_of_the_autoscaler_has_its_words() -> None:
    big = protocol.ResourceRequest(resources_bundle={"CPU": 64})
    selector = protocol.BundleSelector(resource_requests=[big])
    failed = protocol.FailedInstanceRequest(ray_node_type_name="p4d", count=1)
    states = {
        "no room for CPU 2, GPU 1 on the cluster's 2 nodes": {},
        "3 gpu asked for": {
            "pending_instance_requests": [
                protocol.PendingInstanceRequest(ray_node_type_name="gpu", count=n) for n in (1, 2)
            ]
        },
        "2 gpu starting": {
            "pending_instances": [protocol.PendingInstance(ray_node_type_name="gpu")] * 2
        },
        "no room for CPU 64": {"infeasible_resource_requests": [big, big]},
        "no room for CPU 64 and what goes with it": {
            "infeasible_gang_resource_requests": [
                protocol.GangResourceRequest(bundle_selectors=[selector])
            ]
        },
        "the cloud gives no p4d": {"failed_instance_requests": [failed, failed]},
    }
    for words, state in states.items():
        assert in_words(reply(**state), {}) == words
    said = in_words(reply(failed_instance_requests=[failed]), {"p4d": "no capacity"})
    assert said == "the cloud gives no p4d (no capacity)"
