"""Nodes are counted by their type; what does not come says why."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.backends.ray_jobs import RayJobs
from orchestrator.control.executor import NodeCount
from orchestrator.control.ray.gcs import Node
from orchestrator.control.ray.nodes import Nodes, counted, nodes_of
from orchestrator.errors import BackendError
from orchestrator.spec.cluster import Cluster
from tests.jobs_api import PlayedHead, playing
from tests.unit.orchestrator.recipes import cluster


def node(name: str) -> SimpleNamespace:
    return SimpleNamespace(ray_node_type_name=name)


def launch(name: str, count: int, details: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(ray_node_type_name=name, count=count, details=details)


STATUS = SimpleNamespace(
    active_nodes=[node("head"), node("gpu")],
    idle_nodes=[node("gpu"), node("")],
    pending_nodes=[node("gpu")],
    pending_launches=[launch("gpu", 2), launch("cpu", 1)],
    failed_launches=[
        launch("spot", 1, "no capacity\n in a"),
        launch("spot", 2, "no capacity in a"),
        launch("spot", 1),
    ],
)
COUNTS = [
    NodeCount(type="cpu", pending=1),
    NodeCount(type="gpu", alive=2, pending=3),
    NodeCount(type="head", alive=1),
    NodeCount(type="of no type", alive=1),
    NodeCount(type="spot", problems=("no capacity in a", "no reason is known")),
]


def test_counts() -> None:
    assert counted(STATUS, {}) == COUNTS


def test_what_was_logged_says_why_where_the_status_does_not() -> None:
    assert counted(STATUS, {"spot": "quota of 8"})[-1].problems == (
        "no capacity in a",
        "quota of 8",
    )
    assert counted(STATUS, {"gpu": "x"})[-1] == COUNTS[-1]


def ask(head: PlayedHead, **settings: Any) -> Nodes:
    where: Cluster = cluster("/store", backend="ray", **settings)
    return nodes_of(RayJobs(head.url, "t0k3n"), where, timeout_s=0.2)


def test_a_job_on_the_head_asks_and_is_forgotten() -> None:
    with playing() as head:
        there = {"id": "ab", "type": "gpu", "gpus": 8.0, "idle_s": 3.0}
        line = json.dumps({"counts": [c.__dict__ for c in COUNTS], "there": [there]})
        asked: list[str] = []

        def answer(job: dict[str, Any]) -> None:
            asked.append(job["entrypoint"])
            job.update(status="SUCCEEDED", logs=f"a warning\n{line}\n")

        head.on_submit = answer
        assert ask(head, environment={"venv": "/v"}) == (tuple(COUNTS), (Node(**there),))
        assert asked == ["/v/bin/python -m orchestrator.control.ray.nodes"]
        assert head.jobs == {}


@pytest.mark.parametrize(
    ("update", "says"),
    [
        (
            {"status": "FAILED", "logs": "x: No module named orchestrator"},
            r"does not tell its nodes \(x: No module named orchestrator\); install this version",
        ),
        ({"status": "SUCCEEDED", "logs": "[1]"}, r"does not tell its nodes \(\[1\]\)"),
        ({"status": "SUCCEEDED", "logs": '{"counts": [{"kind": 1}]}'}, "does not tell its"),
        ({}, r"does not tell its nodes within 0\.2 s"),
    ],
)
def test_a_head_that_cannot_tell(update: dict[str, Any], says: str) -> None:
    with playing() as head:
        head.on_submit = lambda job: job.update(update)
        with pytest.raises(BackendError, match=says):
            ask(head)
        assert all(job["status"] != "RUNNING" for job in head.jobs.values())
