"""The section ``evaluate``: one section for each score."""

from __future__ import annotations

import pytest

from orchestrator.errors import SpecErrors
from orchestrator.spec.loader import parse_recipe
from orchestrator.spec.recipe import Continuations, Evaluate, Perplexity, by_score
from tests.unit.orchestrator.recipes import plan_of, recipe

OLD = {"bootstrap_samples": 200, "continuations": 2, "prompt_s": 0.5, "seed": 1}
NEW = (
    "{perplexity: {bootstrap_samples: 200, seed: 1}, "
    "continuations: {num_prompts: 2, prompt_s: 0.5, seed: 1}}"
)


def test_each_score_has_a_section() -> None:
    asked = recipe(evaluate={"perplexity": {"seed": 2}, "continuations": None}).evaluate
    assert (asked.perplexity, asked.continuations) == (Perplexity(seed=2), None)
    silent = recipe().evaluate
    assert (silent.perplexity, silent.continuations) == (Perplexity(), Continuations())


def test_a_score_that_is_null_is_no_node() -> None:
    for off, left in (("perplexity", "continuations"), ("continuations", "perplexity")):
        plan = plan_of(recipe(**{f"evaluate.{off}": None}))
        assert [i.stage for i in plan.instances if i.stage in (off, left)] == [left]


def test_flat_keys_are_refused_with_what_to_write() -> None:
    with pytest.raises(SpecErrors) as raised:
        parse_recipe({**recipe().model_dump(mode="json"), "evaluate": OLD}, where="r.yaml")
    assert str(raised.value) == (
        f"r.yaml: evaluate: each score has a section of its own; write {NEW}"
    )


def test_flat_keys_of_earlier_runs_are_read() -> None:
    assert by_score(by_score(OLD)) == by_score(OLD)
    assert by_score({"perplexity": 3, "seed": 2})["perplexity"] == 3, "refused for what it is"
    assert by_score({"continuations": 0}) == {"continuations": None}
    assert by_score({"continuations": {"seed": 1}}) == {"continuations": {"seed": 1}}
    assert by_score({"zzz": 1}) == {"zzz": 1}


@pytest.mark.parametrize("suites", [None, {}, {"swuggy": None}])
def test_null_leaves_out_one_suite_or_all(suites: dict[str, None] | None) -> None:
    assert Evaluate.model_validate({"suites": suites}).asked_suites == {}
