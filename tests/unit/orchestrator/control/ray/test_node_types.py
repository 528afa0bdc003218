"""What no node type of a cluster could ever hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.control.ray.node_types import too_large
from orchestrator.spec.loader import load_cluster
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe
from tests.unit.source import ROOT

HEAD = {"mem_gb": 8, "used_for": [], "min_nodes": 1, "cpus": 64}
DATA = {"mem_gb": 8, "cpus": 8, "used_for": ["data"], "max_nodes": 2}
GPU = {"mem_gb": 8, "cpus": 16, "gpus": 8, "max_nodes": 3}
FITS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"head": HEAD, "data": DATA, "gpu": GPU}, {"train": {"nodes": 3, "gpus_per_node": 8}}),
    ({"data": {**DATA, "used_for": ["data", "training"]}}, {"train": {"ranks_per_node": 16}}),
    ({"data": DATA, "gpu": GPU}, {"tokenize": {"max_workers": 1000}}),
    ({"data": DATA, "gpu": GPU}, {"tokenize": {"gpus_per_node": 1, "gpus_per_worker": 0.5}}),
    ({}, {"train": {"nodes": 1000, "gpus_per_node": 8}}),
]
TOO_LARGE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"head": HEAD, "data": DATA, "gpu": GPU},
        {"train": {"nodes": 4, "gpus_per_node": 8}},
        "c.yaml: resources.train: 32 x 1 CPUs and 1 GPUs at once: node types for training have "
        "room for 24: gpu (3 nodes of 16 CPUs and 8 GPUs); lower it, or give ray.node_types",
    ),
    ({"data": DATA}, {}, "resources.train: 1 x 1 CPUs at once: node types for training have room"),
    (
        {"head": HEAD, "data": DATA, "gpu": GPU},
        {"corpus": {"cpus_per_worker": 32}},
        "resources.corpus: 1 x 32 CPUs at once: node types for data have room for 0",
    ),
    (
        {"data": {**DATA, "used_for": ["data", "training"]}},
        {"perplexity": {"gpus_per_node": 1}},
        "resources.perplexity: 1 x 1 CPUs and 1 GPUs",
    ),
    (
        {"data": DATA, "gpu": GPU},
        {"tokenize": {"min_workers": 100, "max_workers": 100}},
        "resources.tokenize: 100 x 1 CPUs at once",
    ),
]


def told(types: dict[str, Any], resources: dict[str, Any]) -> list[str]:
    where = cluster("/store", backend="ray", ray={"node_types": types}, resources=resources)
    return list(too_large(plan_of(recipe()), where, "c.yaml"))


@pytest.mark.parametrize(("types", "resources"), FITS)
def test_what_has_room(types: dict[str, Any], resources: dict[str, Any]) -> None:
    assert told(types, resources) == []


@pytest.mark.parametrize(("types", "resources", "says"), TOO_LARGE)
def test_what_has_none(types: dict[str, Any], resources: dict[str, Any], says: str) -> None:
    (line,) = told(types, resources)
    assert says in line


@pytest.mark.parametrize("name", ["aws", "gcp", "kube"])
def test_the_projects_own_clusters_hold_what_they_ask_for(name: str) -> None:
    path = Path(ROOT, f"cluster_configs/ray-{name}.yaml")
    assert list(too_large(plan_of(recipe()), load_cluster(path), "c")) == []


def test_nodes_are_selected_by_type_where_one_is_not_for_the_use() -> None:
    types = {"head": HEAD, "data": DATA, "gpu": GPU}
    given = cluster("/store", backend="ray", ray={"node_types": types})
    assert given.node_selector("data") == {"ray.io/node-group": "in(data,gpu)"}
    assert given.node_selector("training") == {"ray.io/node-group": "in(gpu)"}
    alike = cluster("/store", backend="ray", ray={"node_types": {"gpu": GPU}})
    assert alike.node_selector("data") == {}
    assert cluster("/store").node_selector("training") == {}
