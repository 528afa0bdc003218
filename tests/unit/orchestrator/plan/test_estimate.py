"""What a plan says it will cost."""

from __future__ import annotations

import pytest

from orchestrator.plan.estimate import (
    checkpoint_storage,
    estimate,
    gpu_hours,
    parameters_in_name,
    walltimes,
)
from orchestrator.spec.cluster import Prices
from tests.unit.orchestrator.recipes import recipe


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("facebook/opt-350m", 350_000_000),
        ("opt-1.3b", 1_300_000_000),
        ("huggyllama/llama-7b", 7_000_000_000),
        ("bigscience/bloom-1b1", 1_100_000_000),
        ("bigscience/bloom-560m", 560_000_000),
        ("EleutherAI/pythia-6.9B", 6_900_000_000),
        ("bigscience/bloom-1_7b", 1_700_000_000),
        ("7b-models/tiny", None),
        ("tiny-lm", None),
        ("v2beta", None),
        ("net-1.5b3", None),
    ],
)
def test_the_size_that_a_name_states(name: str, size: int | None) -> None:
    assert parameters_in_name(name) == size


def test_training_costs_six_flop_a_parameter_and_token() -> None:
    pinned = {"model.text_model": "facebook/opt-125m"}
    cost = estimate(recipe(**pinned), {})
    assert cost.train_tokens == 12 * 128
    assert cost.train_flop == 6 * 125e6 * 12 * 128
    assert cost.checkpoint_bytes == 16 * 125e6
    assert cost.audio_hours is None


def test_hours_are_known_once_the_corpus_is_there() -> None:
    cost = estimate(recipe(), {"kept_hours": 2.0})
    assert cost.audio_hours == 2.0
    assert cost.num_parameters is None
    assert cost.train_flop is None


def test_hours_and_the_walltimes_they_stretch_over() -> None:
    assert gpu_hours(3.6e17, Prices(gpu_tflops=100)) == 1.0
    assert gpu_hours(None, Prices(gpu_tflops=100)) is None
    assert gpu_hours(1e18, Prices()) is None
    assert walltimes(100, 10, 600) == 1
    assert walltimes(101, 10, 600) == 2


def test_checkpoints_in_the_store() -> None:
    kept = recipe(**{"train.steps": 100, "train.checkpoint.keep_every_steps": 40})
    assert checkpoint_storage(kept, 10.0) == 10.0 * (2 + 2 + 1)
