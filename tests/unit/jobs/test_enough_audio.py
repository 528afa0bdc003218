"""A corpus that is too small is known from its recordings' names and lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pytest

from jobs.enough_audio import require_enough, require_splits
from jobs.lm.splits import Deal
from orchestrator.errors import DataError
from orchestrator.plan.graph import Scope
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Recipe, Split

TEXTS = ("id", "source", "speaker", "session")


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


def seconds(lengths_s: Mapping[str, float], speakers: Mapping[str, str] | None = None) -> pa.Table:
    """Recordings of these lengths; their source is what their names begin with."""
    rows = [
        {
            "id": name,
            "source": name.partition("/")[0],
            "speaker": (speakers or {}).get(name, ""),
            "session": "",
            "num_samples": round(length_s * SAMPLE_RATE_HZ),
        }
        for name, length_s in lengths_s.items()
    ]
    schema = pa.schema([*((n, pa.string()) for n in TEXTS), ("num_samples", pa.int64())])
    return pa.Table.from_pylist(rows, schema)


def in_train(of: Recipe, recordings: pa.Table, source: str = "s") -> int:
    codes = Deal.by_share(of.split).codes(recordings["id"]).tolist()
    return list(zip(codes, recordings["source"].to_pylist(), strict=True)).count((0, source))


def test_enough_is_enough() -> None:
    require_splits(seconds(dict.fromkeys(names(200), 1.0)), Split())
    require_enough([recipe()], seconds(dict.fromkeys(names(50), 2.0)))


@pytest.mark.parametrize("count", [3, 4, 5, 20])
def test_a_few_recordings_are_enough_for_any_shares(count: int) -> None:
    """One's own five: they are dealt out by rank."""
    deal = require_splits(seconds(dict.fromkeys(names(count), 2.0)), Split(train_fraction=0.01))
    assert deal.by_rank


@pytest.mark.parametrize("count", [0, 1, 2])
def test_three_splits_need_three_recordings(count: int) -> None:
    with pytest.raises(DataError, match=rf"^split: train, valid and test .* {count} of them"):
        require_splits(seconds(dict.fromkeys(names(count), 2.0)), Split())


def test_speakers_are_needed_where_they_are_kept_apart() -> None:
    recordings = names(20)
    speakers = {name: f"v{n % 5}" for n, name in enumerate(recordings)}
    audio, apart = dict.fromkeys(recordings, 2.0), {"by": "speaker", "valid": 0.2, "test": 0.2}
    require_enough([recipe(split=apart)], seconds(audio, speakers))
    with pytest.raises(DataError, match="20 of 20 recordings name no speaker, the first is s/0/0;"):
        require_enough([recipe(split=apart)], seconds(audio))
    two = {name: f"v{n % 2}" for n, name in enumerate(recordings)}
    with pytest.raises(DataError, match="need a speaker each, and there are 2 of them"):
        require_enough([recipe(split=apart)], seconds(audio, two))


def test_each_source_of_a_mixture_has_a_window() -> None:
    """Known before anything is encoded, for the source that has too little."""
    sources = {"sources": [{"name": "s"}, {"name": "t"}]}
    mixed = recipe(corpus=sources, mixture={"s": 1, "t": 2})
    talks = [f"t/{n}" for n in range(9)]
    audio = dict.fromkeys(names(50), 2.0)
    require_enough([mixed], seconds({**audio, **dict.fromkeys(talks, 2.0)}))
    short = seconds({**audio, **dict.fromkeys(talks, 0.06)})
    require_enough([recipe(corpus=sources)], short)
    with pytest.raises(DataError) as raised:
        require_enough([mixed], short)
    assert str(raised.value) == (
        f"train.context_length: the training split has at most {3 * in_train(mixed, short, 't')} "
        "tokens of t (50 a second), fewer than the 33 of one window; shorten it or add recordings"
    )


def test_every_variant_is_asked_for() -> None:
    audio = seconds(dict.fromkeys(names(20), 2.0))
    require_enough([recipe()], audio)
    with pytest.raises(DataError, match="name no speaker"):
        require_enough([recipe(), recipe(split={"by": "speaker"})], audio)


def test_a_window_needs_a_context_and_the_token_after_it() -> None:
    recordings = names(20)
    audio = seconds(dict.fromkeys(recordings, 1.0))
    num_tokens = 50 * in_train(recipe(), audio)
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
