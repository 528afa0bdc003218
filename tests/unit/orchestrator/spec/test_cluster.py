"""Resources and options by stage, and by node where one differs."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import SpecErrors
from orchestrator.spec.cluster import Cluster
from orchestrator.spec.loader import parse_cluster


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
