"""Whether a corpus can give what recipes make of it, as far as its list of recordings tells.

A split is a pure function of a recording's name, and no utterance gives more tokens than frames: a
corpus that is too small is known as soon as its recordings are, before any is encoded.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Mapping

from jobs.lm.packing import SPLITS, SplitName, place_of, split_of
from jobs.speech.lloyd import MIN_FRAMES_PER_CLUSTER
from orchestrator.errors import DataError
from orchestrator.plan.graph import Scope
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Recipe, Split

_EVERYTHING = Scope()


def require_enough(
    recipes: Iterable[Recipe],
    num_samples: Mapping[str, int],
    scope: Scope = _EVERYTHING,
) -> None:
    """Raise DataError when recordings, by name with their samples at 16 kHz, are too few.

    ``scope``: what will be done with them.
    """
    # Most variants of a sweep ask for the same, and a corpus may have millions of recordings.
    for recipe in {_demand(recipe): recipe for recipe in recipes}.values():
        if scope.splits:
            require_splits(num_samples, recipe.split)
        if scope.pretrains:
            _require_pretraining(recipe, num_samples)
        if scope.clusters:
            _require_codebook(recipe, num_samples)
        if scope.splits:
            _require_tokens(recipe, num_samples)


def _demand(recipe: Recipe) -> Hashable:
    """All that decides whether a corpus is enough."""
    windows, length = recipe.corpus.windows, recipe.train.context_length
    return (recipe.split, recipe.encoder, recipe.tokenizer, windows, length)


def require_splits(recordings: Collection[str], shares: Split) -> None:
    """Raise DataError when a split gets no recording: its share, and shares that would do."""
    empty = _empty_splits(recordings, shares)
    if empty:
        enough = _shares_that_do(recordings, shares)
        remedy = (
            f"give split: {{valid: {enough.valid:g}, test: {enough.test:g}}}, or " if enough else ""
        )
        thinned = ""
        if shares.train_fraction < 1:
            thinned = f", train_fraction: {shares.train_fraction:g}"
            remedy += "raise split.train_fraction, or " if "train" in empty else ""
        raise DataError(
            f"split: none of {len(recordings)} recordings falls into {' or '.join(empty)} "
            f"(valid: {shares.valid:g}, test: {shares.test:g}{thinned}); {remedy}add recordings"
        )


def _empty_splits(recordings: Iterable[str], shares: Split) -> list[SplitName]:
    found = {split_of(recording, shares) for recording in recordings}
    return [name for name in SPLITS if name not in found]


def _shares_that_do(recordings: Collection[str], shares: Split) -> Split | None:
    """The smallest shares, not below those asked for, that leave no split empty; None for none."""
    places = sorted(place_of(recording) for recording in recordings)
    valid = max(shares.valid, _just_above(places[0])) if places else 1.0
    first = next((place for place in places if place >= valid), 1.0)
    test = max(shares.test, _just_above(first - valid))
    if max(valid, test) >= 0.5:
        return None
    enough = shares.model_copy(update={"valid": valid, "test": test})
    return None if _empty_splits(recordings, enough) else enough


def _just_above(share: float) -> float:
    """The next thousandth."""
    return (math.floor(share * 1000) + 1) / 1000


def _require_pretraining(recipe: Recipe, num_samples: Mapping[str, int]) -> None:
    pretrain = recipe.encoder.pretrain
    if pretrain is None:
        return
    total_s = sum(num_samples.values()) / SAMPLE_RATE_HZ
    if total_s < pretrain.crop_s:
        raise DataError(
            f"encoder.pretrain.crop_s: all recordings last {total_s:.1f} s, and a crop "
            f"{pretrain.crop_s:g} s; lower it or add recordings"
        )
    where = "encoder.pretrain"
    most = max(iteration.num_clusters for iteration in pretrain.iterations)
    _require_frames(
        recipe, num_samples, pretrain.max_hours, most, f"{where}.iterations", f"{where}.max_hours"
    )


def _require_codebook(recipe: Recipe, num_samples: Mapping[str, int]) -> None:
    hours, most = recipe.tokenizer.fit_hours, recipe.tokenizer.num_clusters
    _require_frames(recipe, num_samples, hours, most, "tokenizer", "tokenizer.fit_hours")


def _require_frames(
    recipe: Recipe,
    num_samples: Mapping[str, int],
    hours: float,
    num_clusters: int,
    where: str,
    where_hours: str,
) -> None:
    """Raise DataError when k-means has too few frames: in all, or in the hours it is fitted on."""
    rate_hz, needed = recipe.encoder.frame_rate_hz, MIN_FRAMES_PER_CLUSTER * num_clusters
    frames = sum(int(n * rate_hz / SAMPLE_RATE_HZ) for n in num_samples.values())
    if frames < needed:
        raise DataError(
            f"{where}.num_clusters: all recordings have {frames} frames, and "
            f"{num_clusters} clusters need {needed}; lower it or add recordings"
        )
    # The utterance with which the hours are reached may be of any length.
    drawn = int((hours * 3600 + recipe.corpus.windows.max_s) * rate_hz)
    if drawn < needed:
        raise DataError(
            f"{where_hours}: {hours:g} hours have at most {drawn} frames, and {num_clusters} "
            f"clusters need {needed}; raise it"
        )


def _require_tokens(recipe: Recipe, num_samples: Mapping[str, int]) -> None:
    rate_hz, length = recipe.encoder.frame_rate_hz, recipe.train.context_length
    frames = {r: int(n * rate_hz / SAMPLE_RATE_HZ) for r, n in num_samples.items()}
    num_tokens = sum(n for r, n in frames.items() if split_of(r, recipe.split) == "train")
    if num_tokens <= length:
        raise DataError(
            f"train.context_length: the training split has at most {num_tokens} tokens "
            f"({rate_hz:g} a second), fewer than the {length + 1} of one window; "
            "shorten it or add recordings"
        )
