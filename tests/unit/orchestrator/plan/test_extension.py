"""Which trainings differ in nothing but their length, and whose first steps do not depend on it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.plan.extension import Inputs, obstacle, relatives
from tests.unit.orchestrator.recipes import plan_of, pretrained_recipe, recipe


def inputs(stage: str = "train", **overrides: Any) -> Inputs:
    """Key inputs of the small recipe's training, as they stand in a store."""
    made = pretrained_recipe if stage == "pretrain" else recipe
    instance = next(i for i in plan_of(made(**overrides)).instances if i.stage == stage)
    read: Inputs = json.loads(json.dumps(instance.inputs))
    return read


@pytest.mark.parametrize("steps", [1, 11, 13, 60_000])
def test_another_length_is_a_relative(steps: int) -> None:
    other = inputs(**{"train.steps": steps})
    assert relatives(inputs(), [inputs(), other]) == (other,)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.optimizer.lr", 0.01),
        ("train.schedule.kind", "constant"),
        ("train.schedule.warmup_steps", 7),
        ("train.validate_every_steps", 3),
        ("train.precision", "bf16"),
        ("train.context_length", 16),
        ("model.init", "cold"),
        ("seed", 9),
        ("tokenizer.num_clusters", 40),
    ],
)
def test_what_differs_in_more_is_none(key: str, value: object) -> None:
    other = inputs(**{"train.steps": 13, key: value})
    assert relatives(inputs(), [other]) == ()
    assert relatives(inputs(**{key: value}), [other]) == (other,)


def test_another_version_of_the_stage_is_none() -> None:
    other = inputs(**{"train.steps": 13})
    assert relatives(inputs(), [{**other, "version": 1}]) == ()


@pytest.mark.parametrize("other", [{}, {"stage": "train"}, {"stage": "train", "fields": []}])
def test_what_is_damaged_is_none(other: Inputs) -> None:
    assert relatives(inputs(), [other]) == ()


@pytest.mark.parametrize("stage", ["corpus", "tokenize", "pack", "perplexity"])
def test_what_takes_no_steps_has_none(stage: str) -> None:
    assert relatives(inputs(stage), [inputs(stage, seed=4)]) == ()
    assert obstacle(inputs(stage)) == ""


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("constant", ""),
        ("inverse_sqrt", ""),
        ("cosine", "the cosine schedule depends on train.steps from its first step on"),
    ],
)
def test_a_schedule_that_knows_its_end_is_in_the_way(kind: str, reason: str) -> None:
    assert obstacle(inputs(**{"train.schedule.kind": kind})) == reason


def test_pretraining_knows_its_end() -> None:
    own = inputs("pretrain")
    iterations = [{"targets": "mfcc", "steps": 9}]
    longer = inputs("pretrain", **{"encoder.pretrain.iterations": iterations})
    assert relatives(own, [longer]) == (longer,)
    assert "falls towards its last step" in obstacle(own)
