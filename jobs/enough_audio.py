"""Whether a corpus can give what recipes make of it, as far as its list of recordings tells.

A split is a pure function of a recording's name, and no utterance gives more tokens than frames: a
corpus that is too small is known as soon as its recordings are, before any is encoded.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from jobs.lm.packing import SPLITS, SplitName, place_of, split_of
from jobs.speech.lloyd import MIN_FRAMES_PER_CLUSTER
from orchestrator.errors import DataError
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Recipe, Split


def require_enough(recipes: Iterable[Recipe], num_samples: Mapping[str, int]) -> None:
    """Raise DataError when recordings, by name with their samples at 16 kHz, are too few."""
    # Most variants of a sweep ask for the same, and a corpus may have millions of recordings.
    for recipe in {_demand(recipe): recipe for recipe in recipes}.values():
        require_splits(num_samples, recipe.split)
        _require_tokens(recipe, num_samples)


def _demand(recipe: Recipe) -> tuple[float, ...]:
    """All that decides whether a corpus is enough."""
    split, rate_hz = recipe.split, recipe.encoder.frame_rate_hz
    num_clusters, length = recipe.tokenizer.num_clusters, recipe.train.context_length
    return (split.valid, split.test, rate_hz, num_clusters, length)


def require_splits(recordings: Collection[str], shares: Split) -> None:
    """Raise DataError when a split gets no recording: its share, and shares that would do."""
    empty = _empty_splits(recordings, shares)
    if empty:
        enough = _shares_that_do(recordings, shares)
        remedy = (
            f"give split: {{valid: {enough.valid:g}, test: {enough.test:g}}}, or " if enough else ""
        )
        raise DataError(
            f"split: none of {len(recordings)} recordings falls into {' or '.join(empty)} "
            f"(valid: {shares.valid:g}, test: {shares.test:g}); {remedy}add recordings"
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
    enough = Split(valid=valid, test=test)
    return None if _empty_splits(recordings, enough) else enough


def _just_above(share: float) -> float:
    """The next thousandth."""
    return (math.floor(share * 1000) + 1) / 1000


def _require_tokens(recipe: Recipe, num_samples: Mapping[str, int]) -> None:
    rate_hz, length = recipe.encoder.frame_rate_hz, recipe.train.context_length
    frames = {r: int(n * rate_hz / SAMPLE_RATE_HZ) for r, n in num_samples.items()}
    needed = MIN_FRAMES_PER_CLUSTER * recipe.tokenizer.num_clusters
    if sum(frames.values()) < needed:
        raise DataError(
            f"tokenizer.num_clusters: all recordings have {sum(frames.values())} frames, and "
            f"{recipe.tokenizer.num_clusters} clusters need {needed}; lower it or add recordings"
        )
    num_tokens = sum(n for r, n in frames.items() if split_of(r, recipe.split) == "train")
    if num_tokens <= length:
        raise DataError(
            f"train.context_length: the training split has at most {num_tokens} tokens "
            f"({rate_hz:g} a second), fewer than the {length + 1} of one window; "
            "shorten it or add recordings"
        )
