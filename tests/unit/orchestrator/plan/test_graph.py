"""Which nodes a recipe has, and what they may be called."""

from __future__ import annotations

from typing import get_args

import pytest

from orchestrator.errors import RequestError
from orchestrator.plan.graph import Node, nodes_of, nodes_until
from orchestrator.plan.stages import BY_NAME, STAGES
from orchestrator.spec.cluster import StageName
from tests.unit.orchestrator.recipes import pretrained_recipe, recipe


def test_each_node_comes_after_those_that_it_reads() -> None:
    for one in (recipe(), pretrained_recipe()):
        names = [node.name for node in nodes_of(one)]
        assert len(set(names)) == len(names)
        for n, node in enumerate(nodes_of(one)):
            assert set(node.inputs.values()) <= set(names[:n])


def test_only_an_encoder_that_is_trained_here_reads_a_model() -> None:
    inputs = [
        next(n.inputs for n in nodes_of(r) if n.name == "encoder")
        for r in (recipe(), pretrained_recipe())
    ]
    assert inputs == [{}, {"model": "pretrain.1"}]


def test_what_a_filter_leaves_is_the_corpus_of_all_that_read_one() -> None:
    filtered = {"corpus.filter": {}}
    for one in (recipe(**filtered), pretrained_recipe(**filtered)):
        nodes = {node.name: node.inputs for node in nodes_of(one)}
        assert nodes.pop("filter") == {"corpus": "corpus"}
        assert {inputs["corpus"] for inputs in nodes.values() if "corpus" in inputs} == {"filter"}


def test_a_node_is_named_by_its_stage_and_part() -> None:
    assert Node(stage=BY_NAME["tokenize"]).name == "tokenize"
    assert Node(stage=BY_NAME["tokenize"], part="sblimp_1").name == "tokenize.sblimp_1"


@pytest.mark.parametrize(
    "wrong", [{"part": "a.b"}, {"part": "A"}, {"part": "a-b"}, {"inputs": {"train": "train"}}]
)
def test_other_parts_and_roles_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no such part or role"):
        Node(stage=BY_NAME["pack"], **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("until", "last", "num_nodes"),
    [("corpus", "corpus", 1), ("tokenize", "tokenize", 6), ("pretrain.1", "pretrain.1", 3)],
)
def test_until_leaves_what_is_needed(until: str, last: str, num_nodes: int) -> None:
    everything = nodes_of(pretrained_recipe())
    nodes = nodes_until(pretrained_recipe(), until)
    assert list(nodes) == [n for n in everything if n in nodes]
    assert (nodes[-1].name, len(nodes)) == (last, num_nodes)


def test_until_something_else_names_what_there_is() -> None:
    with pytest.raises(RequestError, match=r"--until: tokenise: .*corpus, .*tokenize, pack"):
        nodes_until(recipe(), "tokenise")


def test_the_spec_knows_every_stage() -> None:
    assert get_args(StageName) == tuple(stage.name for stage in STAGES)
