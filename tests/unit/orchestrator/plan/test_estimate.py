"""What a plan says it will cost."""

from __future__ import annotations

import pytest

from orchestrator.plan.device_memory import Shape
from orchestrator.plan.estimate import (
    checkpoint_storage,
    estimate,
    estimate_sources,
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


def test_a_model_that_is_cut_is_as_large_as_what_is_left_of_it() -> None:
    pinned = {"model.text_model": "facebook/opt-125m", "model.num_layers": 2}
    assert estimate(recipe(**pinned), {}).checkpoint_bytes is None
    cost = estimate(recipe(**pinned), {}, Shape(2, 768, 3072))
    assert cost.num_parameters == 2 * 12 * 768**2
    assert cost.checkpoint_bytes == 16 * 2 * 12 * 768**2


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


CORPUS_FACTS = {
    "sources": {
        "a": {"kept_hours": 3.0, "num_recordings": 30, "num_left_out": 1, "num_quarantined": 0},
        "b": {"kept_hours": 1.0, "num_recordings": 10, "num_left_out": 0, "num_quarantined": 2},
    }
}


def test_what_each_source_gives_before_there_are_units() -> None:
    a, b = estimate_sources(recipe(), CORPUS_FACTS, {}, Prices(encode_speed=2.0))
    assert (a.name, a.num_recordings, a.num_left_out, a.num_quarantined) == ("a", 30, 1, 0)
    assert (a.hours, a.tokens, a.are_tokens_counted, a.gpu_hours) == (3.0, 540_000, False, 1.5)
    assert (b.hours, b.tokens, b.gpu_hours) == (1.0, 180_000, 0.5)
    assert estimate_sources(recipe(), CORPUS_FACTS, {}, Prices())[0].gpu_hours is None


def test_what_each_source_has_given() -> None:
    units = {
        "num_tokens": 1_000,
        "sources": {"a": {"used_hours": 2.5, "num_recordings": 29}, "b": {"used_hours": 2.5}},
    }
    a, _ = estimate_sources(recipe(), CORPUS_FACTS, units, Prices(encode_speed=2.0))
    assert (a.hours, a.tokens, a.are_tokens_counted, a.gpu_hours) == (2.5, 500, True, 0.0)
    assert (a.num_recordings, a.num_left_out, a.num_quarantined) == (29, 1, 0)


def test_used_left_out_and_quarantined_are_all_that_is_listed() -> None:
    listed = {
        **CORPUS_FACTS["sources"],
        "c": {"kept_hours": 0.0, "num_recordings": 0, "num_left_out": 7, "num_quarantined": 1},
    }
    units = {
        "a": {"used_hours": 2.5, "num_recordings": 26, "num_left_out": 3, "num_quarantined": 1},
        "b": {"used_hours": 1.0, "num_recordings": 9, "num_left_out": 0, "num_quarantined": 1},
    }
    facts = {"num_tokens": 1_000, "sources": units}
    found = estimate_sources(recipe(), {"sources": listed}, facts, Prices())
    assert [(s.name, s.num_recordings, s.num_left_out, s.num_quarantined) for s in found] == [
        ("a", 26, 4, 1),
        ("b", 9, 0, 3),
        ("c", 0, 7, 1),
    ]
    for source in found:
        all_of_it = sum(n for name, n in listed[source.name].items() if name.startswith("num_"))
        assert source.num_recordings is not None
        assert all_of_it == sum(
            (source.num_recordings, source.num_left_out or 0, source.num_quarantined or 0)
        )


@pytest.mark.parametrize(("weights", "shares"), [((1, 3), (0.25, 0.75)), ((2, 2), (0.5, 0.5))])
def test_a_mixture_uses_sources_for_epochs_of_their_own(
    weights: tuple[int, int], shares: tuple[float, float]
) -> None:
    """12 steps of 128 tokens, of 6,000 and 2,000 that are there, or of all frames at most."""
    two = {"corpus.sources": [{"name": "a"}, {"name": "b"}]}
    mixed = recipe(**two, mixture=dict(zip("ab", weights, strict=True)))
    units = {"num_tokens": 8_000, "sources": {"a": {"used_hours": 3}, "b": {"used_hours": 1}}}
    trained = 1 - mixed.split.valid - mixed.split.test
    a, b = estimate_sources(mixed, CORPUS_FACTS, units, Prices())
    assert a.epochs == pytest.approx(1536 * shares[0] / (6_000 * trained))
    assert b.epochs == pytest.approx(1536 * shares[1] / (2_000 * trained))
    before, _ = estimate_sources(mixed, CORPUS_FACTS, {}, Prices())
    assert before.epochs == pytest.approx(1536 * shares[0] / (540_000 * trained))
    assert estimate_sources(recipe(**two), CORPUS_FACTS, units, Prices())[0].epochs is None


@pytest.mark.parametrize("facts", [{}, {"kept_hours": 2.0}, {"sources": {}}, {"sources": None}])
def test_facts_of_earlier_versions_say_nothing_of_sources(facts: dict[str, object]) -> None:
    assert estimate_sources(recipe(), facts, {}, Prices()) == ()


def test_a_source_of_which_all_is_left_out() -> None:
    (none,) = estimate_sources(recipe(), {"sources": {"a": {"num_left_out": 5}}}, {}, Prices())
    assert (none.hours, none.tokens, none.gpu_hours) == (None, None, None)
