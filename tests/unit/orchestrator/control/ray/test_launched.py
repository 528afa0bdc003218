"""What a launched cluster costs, and whether its two files are of one mind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.control.ray.launched import LaunchedRay
from orchestrator.errors import RequestError
from orchestrator.spec.loader import load_cluster
from tests.jobs_api import playing
from tests.unit.orchestrator.recipes import cluster
from tests.unit.source import ROOT

LAUNCHER = (
    "provider: {type: aws}\nhead_node_type: head\navailable_node_types: {head: {}, gpu: {}}\n"
)


def launched(folder: Path, **ray: Any) -> LaunchedRay:
    (folder / "l.yaml").write_text(LAUNCHER)
    settings = {"launcher": str(folder / "l.yaml"), **ray}
    return LaunchedRay(cluster("/store", backend="ray", ray=settings), "c.yaml")


HEAD = {"mem_gb": 8, "used_for": [], "min_nodes": 1}
GPU = {"mem_gb": 8, "gpus": 8, "max_nodes": 4}


@pytest.mark.parametrize(
    ("types", "says"),
    [
        (
            {"head": {**HEAD, "price_hour": 0.5}, "gpu": {**GPU, "price_hour": 1000}},
            "0.50 USD an hour without work, at most 4,000.50 (1 head, 4 gpu)",
        ),
        (
            {"head": {**HEAD, "price_hour": 0.5}, "gpu": GPU},
            "0.50 USD an hour without work, at most 0.50 (1 head); no price is known of gpu",
        ),
        (
            {"head": HEAD, "gpu": {**GPU, "min_nodes": 2, "price_hour": 10}},
            "20.00 USD an hour without work, at most 40.00 (4 gpu); no price is known of head",
        ),
        ({"head": HEAD}, "what it costs is not known; give ray.node_types.NAME.price_hour"),
        ({}, "what it costs is not known; give ray.node_types.NAME.price_hour"),
    ],
)
def test_prices(tmp_path: Path, types: dict[str, Any], says: str) -> None:
    assert launched(tmp_path, node_types=types).price() == says


@pytest.mark.parametrize(("name", "least"), [("aws", "0.81"), ("gcp", "0.78"), ("kube", "")])
def test_prices_of_the_project(name: str, least: str) -> None:
    where = load_cluster(ROOT / f"cluster_configs/ray-{name}.yaml")
    says = LaunchedRay(where, "c.yaml").price()
    assert says.startswith(f"{least} USD an hour" if least else "what it costs is not known")


def test_a_type_that_the_launcher_does_not_know_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as raised:
        launched(tmp_path, node_types={"gpus": GPU}).up(print)
    assert str(raised.value) == (
        "c.yaml: ray.node_types.gpus: l.yaml has no such type; it has head, gpu"
    )


def test_runs_are_those_whose_supervisors_the_head_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t0k3n")
    with playing() as head:
        head.jobs = {
            tag: {"submission_id": tag, "status": state, "metadata": {"run": run}}
            for tag, run, state in [
                ("a-s0001", "a", "STOPPED"),
                ("a-s0002", "a", "RUNNING"),
                ("a-s0002.2", "a", "PENDING"),
                ("b-s0001", "b", "RUNNING"),
                ("c-s0001", "c", "FAILED"),
                ("nodes-12", "nodes", "RUNNING"),
            ]
        }
        assert launched(tmp_path, address=head.url).runs() == ("a", "b")
