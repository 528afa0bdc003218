"""A corpus that is too small is known from its recordings' names and lengths."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

import pytest

from jobs.enough_audio import require_enough, require_splits
from jobs.lm.packing import SPLITS, split_of
from orchestrator.errors import DataError
from orchestrator.plan.graph import Scope
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Recipe, Split

SHARES = re.compile(r"give split: {valid: ([0-9.]+), test: ([0-9.]+)}, or")


def names(count: int, seed: int = 0) -> list[str]:
    return [f"s/{seed}/{n}" for n in range(count)]


def recipe(**over: Any) -> Recipe:
    raw = {
        "name": "small",
        "corpus": {"sources": [{"name": "s"}]},
        "encoder": {"model": "hubert", "sha256": "a" * 64, "layer": 1},
        "tokenizer": {"num_clusters": 2},
        "split": {"valid": 0.2, "test": 0.2},
        "model": {"text_model": "lm", "sha256": "b" * 64},
        "train": {"context_length": 32, "global_batch_tokens": 32, "steps": 1},
    }
    return Recipe.model_validate({**raw, **over})


def seconds(lengths_s: Mapping[str, float]) -> dict[str, int]:
    return {name: round(length_s * SAMPLE_RATE_HZ) for name, length_s in lengths_s.items()}


def test_enough_is_enough() -> None:
    require_splits(names(200), Split())
    require_enough([recipe()], seconds(dict.fromkeys(names(50), 2.0)))


def test_a_share_that_takes_nothing_is_named_with_one_that_does() -> None:
    with pytest.raises(DataError) as raised:
        require_splits(names(20), Split(valid=0.02, test=0.02))
    said = str(raised.value)
    assert said.startswith("split: none of 20 recordings falls into ")
    assert "(valid: 0.02, test: 0.02); give split: {valid: " in said
    assert said.endswith(", or add recordings")


def test_a_training_split_that_is_thinned_to_nothing_says_why() -> None:
    with pytest.raises(DataError) as raised:
        require_splits(names(200), Split(train_fraction=0.0001))
    assert str(raised.value) == (
        "split: none of 200 recordings falls into train (valid: 0.02, test: 0.02, train_fraction: "
        "0.0001); raise split.train_fraction, or add recordings"
    )


@pytest.mark.parametrize("seed", range(40))
def test_the_shares_that_are_offered_do(seed: int) -> None:
    """On any small corpus: what a message says is tried."""
    some = random.Random(seed)
    recordings = names(some.randint(3, 60), seed)
    shares = Split(valid=some.choice([0.01, 0.02, 0.1]), test=some.choice([0.01, 0.05]))
    if {split_of(r, shares) for r in recordings} == set(SPLITS):
        require_splits(recordings, shares)
        return
    with pytest.raises(DataError, match=r"add recordings$") as raised:
        require_splits(recordings, shares)
    if found := SHARES.search(str(raised.value)):
        offered = Split(valid=float(found[1]), test=float(found[2]))
        assert offered.valid >= shares.valid
        assert offered.test >= shares.test
        assert {split_of(r, offered) for r in recordings} == set(SPLITS)
    else:
        assert len(recordings) < 10


@pytest.mark.parametrize("count", [0, 1, 2])
def test_three_splits_need_three_recordings(count: int) -> None:
    with pytest.raises(DataError, match=rf"none of {count} recordings .*; add recordings$"):
        require_splits(names(count), Split())


def test_every_variant_is_asked_for() -> None:
    audio = seconds(dict.fromkeys(names(20), 2.0))
    require_enough([recipe()], audio)
    with pytest.raises(DataError, match="falls into valid"):
        require_enough([recipe(), recipe(split={"valid": 0.0001, "test": 0.2})], audio)


def test_a_window_needs_a_context_and_the_token_after_it() -> None:
    recordings = names(20)
    train = [r for r in recordings if split_of(r, recipe().split) == "train"]
    audio = seconds(dict.fromkeys(recordings, 1.0))
    num_tokens = 50 * len(train)
    fits, exceeds = (
        recipe(train={"context_length": n, "global_batch_tokens": n, "steps": 1})
        for n in (num_tokens - 1, num_tokens)
    )
    require_enough([fits], audio)
    with pytest.raises(DataError) as raised:
        require_enough([exceeds], audio)
    assert str(raised.value) == (
        f"train.context_length: the training split has at most {num_tokens} tokens (50 a second), "
        f"fewer than the {num_tokens + 1} of one window; shorten it or add recordings"
    )


def test_a_run_is_asked_only_for_the_stages_that_it_has() -> None:
    two = seconds(dict.fromkeys(names(2), 1.0))
    require_enough([recipe()], two, Scope(frozenset({"corpus", "codebook"})))
    require_enough([recipe(tokenizer={"num_clusters": 2000})], two, Scope(frozenset({"corpus"})))
    with pytest.raises(DataError, match="num_clusters"):
        require_enough(
            [recipe(tokenizer={"num_clusters": 2000})],
            two,
            Scope(frozenset({"corpus", "codebook"})),
        )


def test_clusters_need_frames() -> None:
    with pytest.raises(DataError) as raised:
        require_enough(
            [recipe(tokenizer={"num_clusters": 2000})], seconds(dict.fromkeys(names(20), 1.0))
        )
    assert str(raised.value).startswith(
        "tokenizer.num_clusters: all recordings have 1000 frames, and 2000 clusters need "
    )


PRETRAIN = {"num_layers": 1, "iterations": [{"targets": "mfcc", "steps": 1, "num_clusters": 100}]}


@pytest.mark.parametrize(
    ("over", "says"),
    [
        (
            {"tokenizer": {"num_clusters": 2000, "fit_hours": 0.001}},
            "tokenizer.fit_hours: 0.001 hours have at most 1680 frames, and 2000 clusters need "
            "4000; raise it",
        ),
        (
            {"encoder": {"layer": 1, "pretrain": {**PRETRAIN, "crop_s": 2000.0}}},
            "encoder.pretrain.crop_s: all recordings last 1000.0 s, and a crop 2000 s; lower it "
            "or add recordings",
        ),
        (
            {
                "encoder": {"layer": 1, "pretrain": {**PRETRAIN, "max_hours": 1e-6}},
                "corpus": {"sources": [{"name": "s"}], "windows": {"max_s": 2.0}},
            },
            "encoder.pretrain.max_hours: 1e-06 hours have at most 100 frames, and 100 clusters "
            "need 200; raise it",
        ),
        (
            {
                "encoder": {
                    "layer": 1,
                    "pretrain": {
                        **PRETRAIN,
                        "iterations": [{"steps": 1, "num_clusters": 65_000}],
                    },
                },
            },
            "encoder.pretrain.iterations.num_clusters: all recordings have 50000 frames, and "
            "65000 clusters need 130000; lower it or add recordings",
        ),
    ],
    ids=["hours of the codebook", "crops", "hours of pretraining", "targets"],
)
def test_what_only_part_of_the_recordings_is_used_for(over: Mapping[str, Any], says: str) -> None:
    """It is known before the encoder is trained."""
    with pytest.raises(DataError) as raised:
        require_enough([recipe(**over)], seconds(dict.fromkeys(names(500), 2.0)))
    assert str(raised.value) == says
