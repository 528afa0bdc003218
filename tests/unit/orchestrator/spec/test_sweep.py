"""Axes of values and of named points: which variants they give, and what they are called."""

from __future__ import annotations

import json

import pytest
import yaml

from orchestrator.errors import RequestError
from orchestrator.ledger.storage import to_json
from orchestrator.plan.planner import Plan
from orchestrator.spec.loader import parse_recipe
from orchestrator.spec.recipe import Recipe
from orchestrator.spec.sweep import SweepPoint, require_sound, sweep_points
from tests.unit.orchestrator import broken
from tests.unit.orchestrator.recipes import plan_of, recipe, swept, variants_of

TOKENIZERS = {
    "tokenizer": {
        "coarse": {"encoder.layer": 1, "tokenizer.num_clusters": 10},
        "fine": {"encoder.layer": 2, "tokenizer.num_clusters": 40, "tokenizer.deduplicate": False},
    }
}


def names(text: str) -> list[str]:
    return [point.name for point in sweep_points(parse(text).sweep)]


def parse(text: str) -> Recipe:
    return parse_recipe({**yaml.safe_load(broken.RECIPE), "sweep": yaml.safe_load(text)}, where="r")


def test_a_sweep_is_the_product_of_its_lists() -> None:
    points = sweep_points(swept(recipe(), seed=[1, 2], **{"model.init": ["twist", "cold"]}).sweep)
    assert [(point.name, point.overrides) for point in points] == [
        ("seed=1,init=twist", {"seed": 1, "model.init": "twist"}),
        ("seed=1,init=cold", {"seed": 1, "model.init": "cold"}),
        ("seed=2,init=twist", {"seed": 2, "model.init": "twist"}),
        ("seed=2,init=cold", {"seed": 2, "model.init": "cold"}),
    ]
    assert list(sweep_points(recipe().sweep)) == [SweepPoint("base", {})]


def test_names_use_whole_keys_where_last_parts_clash() -> None:
    clashing = "{tokenizer.seed: [1], evaluate.perplexity.seed: [2]}"
    assert names(clashing) == ["tokenizer.seed=1,evaluate.perplexity.seed=2"]


def test_named_points_multiply_with_lists_and_with_one_another() -> None:
    more = {"size": {"small": {"train.steps": 5}, "large": {"train.steps": 9, "seed": 7}}}
    made = variants_of(swept(recipe(), **TOKENIZERS, **{"model.init": ["twist", "cold"]}, **more))
    assert [v.name for v in made] == [
        f"{tokenizer},init={init},{size}"
        for tokenizer in ("coarse", "fine")
        for init in ("twist", "cold")
        for size in ("small", "large")
    ]
    last = made[-1].recipe
    assert (last.encoder.layer, last.tokenizer.num_clusters, last.tokenizer.deduplicate) == (
        *(2, 40),
        False,
    )
    assert (last.model.init, last.train.steps, last.seed, last.sweep) == ("cold", 9, 7, {})
    assert made[0].overrides == {
        **TOKENIZERS["tokenizer"]["coarse"],
        "model.init": "twist",
        "train.steps": 5,
    }


def test_a_point_may_set_a_section_or_a_list_as_a_whole() -> None:
    pinned = {"model": "other", "sha256": "c" * 64, "layer": 1}
    base = swept(recipe(), of={"it": {"encoder": pinned, "corpus.languages": ["en", "fr"]}})
    (variant,) = variants_of(base)
    assert (variant.recipe.encoder.model, variant.recipe.encoder.layer) == ("other", 1)
    assert variant.recipe.corpus.languages == ("en", "fr")
    assert base.encoder == recipe().encoder


def test_points_of_equal_values_of_other_types_are_two() -> None:
    require_sound({"a": {"one": {"train.lr": 1}, "true": {"train.lr": True}}})


def test_a_point_makes_the_keys_that_its_values_make_alone() -> None:
    """How a variant came about is in no key."""
    named = plan_of(swept(recipe(), a={"x": {"train.steps": 5}, "y": {"train.steps": 6}}))
    listed = plan_of(swept(recipe(), **{"train.steps": [5, 6]}))
    assert [i.key for i in named.instances] == [i.key for i in listed.instances]
    assert [v["name"] for v in named.variants] == ["x", "y"]


def test_a_run_records_its_points_and_reads_them_back() -> None:
    """Recipe and plan, as they are written into a run's folder."""
    base = swept(recipe(), **TOKENIZERS)
    text = yaml.safe_dump(base.model_dump(mode="json", exclude_unset=True))
    assert parse_recipe(yaml.safe_load(text), where="r") == base
    plan = plan_of(base)
    assert Plan.from_json(json.loads(to_json(plan.to_json()))).variants == plan.variants


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        ("{a: {}}", "r: sweep.a: no point; name one, with the dotted keys that it sets"),
        (
            "{a: {x: {}}}",
            "r: sweep.a.x: sets nothing; give it dotted keys, or leave it out",
        ),
        ("{a: {x: 5}}", "r: sweep.a.x: must be a section, not 5"),
        (
            "{a: {'x y': {seed: 1}}}",
            "r: sweep.a.x y: must be text like ^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$, not 'x y'",
        ),
        (
            "{a: {'x=1': {seed: 1}}}",
            "r: sweep.a.x=1: must be text like ^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$, not 'x=1'",
        ),
        (
            "{a: {x: {sweep.seed: [1]}}}",
            "r: sweep.a.x: a point has no sweep of its own; give the sweep an axis more",
        ),
        (
            "{a: {x: {sweep: {seed: [1]}}}}",
            "r: sweep.a.x: a point has no sweep of its own; give the sweep an axis more",
        ),
        (
            "{a: {x: {seed: 1}, y: {seed: 1}}}",
            "r: sweep.a.y: sets what x does; keep one",
        ),
        (
            "{a: {x: {train.step: 1}}, seed: [1]}",
            "r: sweep x,seed=1: train.step: unknown key; did you mean 'steps'?",
        ),
        (
            "{a: {x: {train.steps.y: 1}}}",
            "r: sweep x: train.steps.y: 'steps' is not a section; set it as a whole",
        ),
        (
            "{a: {x: {train.steps: many}}}",
            "r: sweep x: train.steps: must be a whole number, not 'many'",
        ),
        (
            "{a: {x: {evaluate.temperature: 1}}}",
            "r: sweep x: evaluate.temperature: each score has a section of its own; write "
            "evaluate.continuations.temperature",
        ),
        (
            "{a: {x: {seed: 1}}, b: {y: {seed: 2}}}",
            "r: sweep: seed is set by a and by b; leave it to one of them",
        ),
        (
            "{seed: [1, 2], b: {y: {seed: 2}}}",
            "r: sweep: seed is set by seed and by b; leave it to one of them",
        ),
        (
            "{a: {x: {encoder: {}}}, encoder.layer: [1, 2]}",
            "r: sweep: encoder.layer is set by a and by encoder.layer; leave it to one of them",
        ),
        (
            "{a: {x: {encoder: {}, encoder.layer: 2}}}",
            "r: sweep.a.x: encoder.layer is a part of encoder; set it there",
        ),
    ],
)
def test_what_is_wrong_is_one_line_that_names_its_place(sweep: str, says: str) -> None:
    with pytest.raises(RequestError) as raised:
        parse(sweep)
    assert str(raised.value) == says
