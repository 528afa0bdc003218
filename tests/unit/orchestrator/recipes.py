"""Small sound recipes and plans that tests start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from orchestrator.plan.planner import Plan, Variant, make_plan
from orchestrator.plan.stages import Facts
from orchestrator.spec.cluster import Cluster
from orchestrator.spec.loader import parse_recipe, variant_recipe
from orchestrator.spec.recipe import Recipe
from orchestrator.spec.sweep import sweep_points
from tests.unit.orchestrator import broken

FACTS = Facts(listings={"speech": "c" * 64})


def recipe(**overrides: Any) -> Recipe:
    """The small recipe with dotted keys changed: ``recipe(**{"train.steps": 5})``."""
    return variant_recipe(parse_recipe(yaml.safe_load(broken.RECIPE), where="r.yaml"), overrides)


def pretrained_recipe(**overrides: Any) -> Recipe:
    """The small recipe with an encoder of its own."""
    raw = yaml.safe_load(broken.RECIPE)
    raw["encoder"] = {
        "layer": 2,
        "pretrain": {"num_layers": 2, "iterations": [{"targets": "mfcc", "steps": 5}]},
    }
    return variant_recipe(parse_recipe(raw, where="r.yaml"), overrides)


def swept(recipe: Recipe, **sweep: list[Any] | dict[str, Any]) -> Recipe:
    """The recipe with a sweep over dotted keys, or over named points."""
    raw = recipe.model_dump(mode="json", exclude_unset=True)
    return parse_recipe({**raw, "sweep": sweep}, where="r.yaml")


def variants_of(recipe: Recipe) -> tuple[Variant, ...]:
    """All variants of a recipe."""
    return tuple(
        Variant(
            name=point.name,
            overrides=point.overrides,
            recipe=variant_recipe(recipe, point.overrides),
        )
        for point in sweep_points(recipe.sweep)
    )


def plan_of(recipe: Recipe, **how: Any) -> Plan:
    """The plan of a recipe over a store that holds what ``how`` says."""
    return make_plan(variants_of(recipe), how.pop("facts", FACTS), **how)


def keys_of(plan: Plan) -> dict[str, str]:
    """Node to key, for a plan of one variant."""
    return {i.node: i.key for i in plan.instances}


def cluster(store: str, **settings: Any) -> Cluster:
    """A cluster over a store, its data nowhere."""
    raw: Mapping[str, Any] = {"backend": "fake", "store": store, "cpus": 2, **settings}
    return Cluster.model_validate(raw)
