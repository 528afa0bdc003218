"""Resources and options by stage, and by node where one differs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import SpecErrors
from orchestrator.spec.cluster import Cluster
from orchestrator.spec.loader import load_cluster, parse_cluster


def cluster(**settings: Any) -> Cluster:
    return parse_cluster({"backend": "slurm", "store": "s", **settings}, where="c.yaml")


def test_a_node_takes_from_its_stage_what_it_does_not_say() -> None:
    asked = {
        "tokenize.sblimp": {"nodes": 1},
        "tokenize": {"nodes": 4, "mem_gb": 64, "max_workers": 8},
    }
    for where in (cluster(resources=asked), cluster(resources=dict(reversed(asked.items())))):
        assert where.resources_of("tokenize").nodes == 4
        assert where.resources_of("tokenize", "tokenize") == where.resources_of("tokenize")
        small = where.resources_of("tokenize", "tokenize.sblimp")
        assert (small.nodes, small.mem_gb, small.max_workers) == (1, 64, 8)
        assert where.resources_of("tokenize", "tokenize.other").nodes == 4
        written = where.model_dump(mode="json", exclude_none=True)
        assert parse_cluster(written, where="cluster.yaml") == where


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("tokenise", "no such stage; did you mean 'tokenize'?"),
        ("tokenise.sblimp", "no such stage; did you mean 'tokenize'?"),
        ("tokenize.", "'' names no node; write tokenize, or tokenize.NAME"),
        ("tokenize.S-1", "'S-1' names no node; write tokenize, or tokenize.NAME"),
        ("tokenize.a.b", "'a.b' names no node; write tokenize, or tokenize.NAME"),
    ],
)
def test_a_name_that_no_node_can_have_is_refused(name: str, problem: str) -> None:
    with pytest.raises(SpecErrors) as raised:
        cluster(resources={name: {}})
    assert str(raised.value) == f"c.yaml: resources.{name}: {problem}"
    with pytest.raises(SpecErrors) as raised:
        cluster(slurm={"stages": {name: {}}})
    assert str(raised.value) == f"c.yaml: slurm.stages.{name}: {problem}"


def ray(**settings: Any) -> Cluster:
    return parse_cluster({"backend": "ray", "store": "s3://b/s", "ray": settings}, where="c.yaml")


@pytest.mark.parametrize(
    ("launcher", "file"),
    [
        ("aws", "launchers/aws.yaml"),
        ("aws.yaml", "launchers/aws.yaml"),
        ("./mine.yaml", "mine.yaml"),
        ("../of/all.yaml", "../of/all.yaml"),
        ("/etc/aws.yaml", "/etc/aws.yaml"),
    ],
)
def test_a_launcher_lies_beside_its_cluster_file(launcher: str, file: str, tmp_path: Path) -> None:
    written = tmp_path / "c.yaml"
    written.write_text(f"backend: ray\nstore: s3://b/s\nray: {{launcher: {launcher}}}\n")
    loaded = load_cluster(written)
    assert loaded.ray.launcher == os.path.normpath(tmp_path / file)
    again = parse_cluster(loaded.model_dump(mode="json", exclude_none=True), where="cluster.yaml")
    assert again == loaded


def test_node_types_have_defaults() -> None:
    types = ray(node_types={"cpu": {"mem_gb": 4, "cpus": 8, "used_for": ["data"]}}).ray.node_types
    assert (types["cpu"].gpus, types["cpu"].min_nodes, types["cpu"].max_nodes) == (0, 0, 1)
    assert types["cpu"].price_hour is None
    assert not types["cpu"].spot


@pytest.mark.parametrize(
    ("spots", "kept"),
    [
        ({"a": True, "b": False}, ("b",)),
        ({"a": True, "b": True}, ()),
        ({"a": False, "b": False}, ()),
        ({}, ()),
    ],
)
def test_on_demand_types_are_those_that_a_cloud_leaves_where_it_takes_others(
    spots: dict[str, bool], kept: tuple[str, ...]
) -> None:
    types = {name: {"mem_gb": 1, "spot": spot} for name, spot in spots.items()}
    types["head"] = {"mem_gb": 1, "used_for": []}
    assert ray(node_types=types).on_demand_types == kept


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"node_types": {"a": {}}}, "ray.node_types.a.mem_gb: missing; give it a value"),
        (
            {"node_types": {"a": {"mem_gb": 1, "min_nodes": 3, "max_nodes": 2}}},
            "ray.node_types.a: min_nodes (3) must not be above max_nodes (2)",
        ),
        (
            {"node_types": {"a": {"mem_gb": 1, "used_for": ["encode"]}}},
            "ray.node_types.a.used_for.0: must be 'data' or 'training', not 'encode'",
        ),
        (
            {"node_types": {"a": {"mem_gb": 1, "cpu": 3}}},
            "ray.node_types.a.cpu: unknown key; did you mean 'cpus'?",
        ),
        (
            {"node_types": {"a": {"mem_gb": 1, "price_hour": -1}}},
            "ray.node_types.a.price_hour: must be at least 0, not -1",
        ),
        ({"pending_deadline_min": 0}, "ray.pending_deadline_min: must be above 0, not 0"),
        ({"ttl_h": -1}, "ray.ttl_h: must be above 0, not -1"),
        ({"idle_release_min": "5"}, "ray.idle_release_min: must be a number, not '5'"),
        ({"launcher": "a b"}, "ray.launcher: must not contain spaces: 'a b'"),
    ],
)
def test_what_no_ray_cluster_can_be(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecErrors) as raised:
        ray(**settings)
    assert str(raised.value) == f"c.yaml: {problem}"


@pytest.mark.parametrize(
    ("backend", "nodes", "problem"),
    [
        ("ray", {"min": 3, "max": 2}, "min (3) must not be above max (2)"),
        ("ray", {"min": 0, "max": 2}, "resources.train.nodes.min: "),
        ("ray", {"max": 2}, "resources.train.nodes.min: missing"),
        ("ray", "two", "resources.train.nodes: "),
        ("local", {"min": 1, "max": 2}, "resources.train.nodes: a range is for backends ray and"),
    ],
)
def test_a_range_of_nodes_that_cannot_be_is_refused(
    backend: str, nodes: object, problem: str
) -> None:
    written = {"backend": backend, "store": "/s", "resources": {"train": {"nodes": nodes}}}
    with pytest.raises(SpecErrors) as raised:
        parse_cluster(written, where="c.yaml")
    assert problem in str(raised.value)


def test_a_range_counts_as_its_most() -> None:
    written = {"backend": "ray", "store": "/s"}
    train = {"nodes": {"min": 1, "max": 3}, "ranks_per_node": 2, "max_workers": 7}
    where = parse_cluster({**written, "resources": {"train": train}}, where="c.yaml")
    resources = where.resources_of("train")
    assert (resources.max_nodes, resources.world_size, resources.workers_per_node) == (3, 6, 3)
    assert [size.world_size for size in resources.sizes] == [6, 4, 2]
    again = parse_cluster(where.model_dump(mode="json", exclude_none=True), where="cluster.yaml")
    assert again == where
