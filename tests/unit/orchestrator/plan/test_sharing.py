"""What a sweep's variants have in common."""

from __future__ import annotations

from dataclasses import astuple

from orchestrator.plan.planner import Plan
from orchestrator.plan.sharing import sharing
from tests.unit.orchestrator.recipes import plan_of, recipe, swept

LAYERS = {"encoder.layer": [1, 2]}
CODEBOOKS = {"tokenizer.num_clusters": [20, 40]}
ARMS = {"model.init": ["twist", "cold"]}


def swept_plan(**sweep: list[object]) -> Plan:
    return plan_of(swept(recipe(), **sweep))


def hours_in(plan: Plan, hours: float) -> dict[str, float | None]:
    return {corpus.id: hours for corpus in plan.corpora}


def test_codebooks_of_one_encoder_share_a_pass_and_arms_share_their_units() -> None:
    plan = swept_plan(**LAYERS, **CODEBOOKS, **ARMS)
    found = sharing(plan, hours_in(plan, 10.0))
    # corpus, encoder; for each of 4 tokenizers codebook, tokenize, pack; for each arm three more.
    assert (found.num_variants, found.num_nodes, found.num_instances) == (8, 64, 2 + 4 * (3 + 6))
    assert (found.num_encodings, found.num_passes) == (8, 1)
    assert (found.hours_wanted, found.hours_encoded) == (80.0, 10.0)


def test_hours_are_those_of_each_variants_own_corpus() -> None:
    plan = swept_plan(**{"corpus.data_fraction": [0.1, 1.0]}, **ARMS)
    corpora = [i.id for i in plan.instances if i.stage == "corpus"]
    found = sharing(plan, dict(zip(corpora, (1.0, 10.0), strict=True)))
    assert (found.hours_wanted, found.hours_encoded) == (22.0, 11.0)
    assert sharing(plan, {corpora[0]: 1.0}).hours_wanted is None


def test_hours_of_a_corpus_that_is_not_there_are_not_known() -> None:
    plan = swept_plan(**ARMS)
    assert sharing(plan, {}).hours_encoded is None
    assert sharing(plan, hours_in(plan, 3.0)).hours_encoded == 3.0


def test_one_variant_shares_nothing() -> None:
    found = sharing(plan_of(recipe()), {})
    assert astuple(found) == (1, 8, 8, 1, 1, None, None)
