"""Whether a corpus can give what recipes make of it, as far as its list of recordings tells.

A split is a pure function of what recordings are called, and no utterance gives more tokens than
frames: a corpus that is too small is known as soon as its recordings are, before any is encoded.

In: a table with a row a recording: ``id``, ``source``, ``speaker``, ``session`` and, where lengths
are known, ``num_samples`` at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.lm.splits import SPLITS, Deal, deal_out, groups_of, require_speakers, sources_of
from jobs.speech.lloyd import MIN_FRAMES_PER_CLUSTER
from orchestrator.errors import DataError
from orchestrator.plan.graph import Scope
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Recipe, Split

Samples = npt.NDArray[np.int64]
_EVERYTHING = Scope()
_SOME = 1 << 16
"""Recordings that are looked at between two looks at whether they are enough already."""


def require_enough(
    recipes: Iterable[Recipe], recordings: pa.Table, scope: Scope = _EVERYTHING
) -> None:
    """Raise DataError when recordings are too few. ``scope``: what will be done with them."""
    num_samples = recordings["num_samples"].to_numpy()
    # Most variants of a sweep ask for the same, and a corpus may have millions of recordings.
    for recipe in {_demand(recipe): recipe for recipe in recipes}.values():
        deal = require_splits(recordings, recipe.split) if scope.splits else None
        if scope.pretrains:
            _require_pretraining(recipe, num_samples)
        if scope.clusters:
            _require_codebook(recipe, num_samples)
        if deal:
            _require_tokens(recipe, recordings, deal)


def _demand(recipe: Recipe) -> Hashable:
    """All that decides whether a corpus is enough."""
    windows, length = recipe.corpus.windows, recipe.train.context_length
    mixed = tuple(recipe.mixture_ratio)
    return (recipe.split, recipe.encoder, recipe.tokenizer, windows, length, mixed)


def require_splits(recordings: pa.Table, shares: Split) -> Deal:
    """Which split each recording is in.

    Raises DataError when there are fewer groups than splits, or recordings in none where all need
    one.
    """
    if shares.by == "speaker":
        require_speakers(recordings, named="id")
    pieces = (recordings.slice(start, _SOME) for start in range(0, len(recordings), _SOME))
    return deal_out(shares, (groups_of(piece, shares.by, named="id") for piece in pieces))


def require_window(num_tokens: int, length: int, *, source: str = "", rate: str = "") -> None:
    """Raise DataError when the training split, or its part of a source, is not one window."""
    if num_tokens <= length:
        has = f"at most {num_tokens} tokens" if rate else f"{num_tokens} tokens"
        of, at = f" of {source}" if source else "", f" ({rate})" if rate else ""
        raise DataError(
            f"train.context_length: the training split has {has}{of}{at}, fewer than the "
            f"{length + 1} of one window; shorten it or add recordings"
        )


def _require_pretraining(recipe: Recipe, num_samples: Samples) -> None:
    pretrain = recipe.encoder.pretrain
    if pretrain is None:
        return
    total_s = int(num_samples.sum()) / SAMPLE_RATE_HZ
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


def _require_codebook(recipe: Recipe, num_samples: Samples) -> None:
    hours, most = recipe.codebook_hours, recipe.tokenizer.num_clusters
    _require_frames(recipe, num_samples, hours, most, "tokenizer", "tokenizer.fit_hours")


def _require_frames(
    recipe: Recipe,
    num_samples: Samples,
    hours: float,
    num_clusters: int,
    where: str,
    where_hours: str,
) -> None:
    """Raise DataError when k-means has too few frames: in all, or in the hours it is fitted on."""
    rate_hz, needed = recipe.encoder.frame_rate_hz, MIN_FRAMES_PER_CLUSTER * num_clusters
    frames = int(_frames(num_samples, rate_hz).sum())
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


def _require_tokens(recipe: Recipe, recordings: pa.Table, deal: Deal) -> None:
    """Raise DataError when training has no window, or none of a source that is mixed."""
    rate_hz, length = recipe.encoder.frame_rate_hz, recipe.train.context_length
    wanted = list(recipe.mixture_ratio) or [""]
    num_tokens = dict.fromkeys(wanted, 0)
    for start in range(0, recordings.num_rows, _SOME):
        for source, found in _trained(recordings.slice(start, _SOME), recipe, deal).items():
            num_tokens[source if recipe.mixture else ""] += found
        if min(num_tokens.values()) > length:
            return
    for source, found in num_tokens.items():
        require_window(found, length, source=source, rate=f"{rate_hz:g} a second")


def _trained(recordings: pa.Table, recipe: Recipe, deal: Deal) -> dict[str, int]:
    """Tokens at most that recordings of each source give to training."""
    codes = deal.codes(groups_of(recordings, recipe.split.by, named="id"))
    frames = _frames(recordings["num_samples"].to_numpy(), recipe.encoder.frame_rate_hz)
    frames[codes != SPLITS.index("train")] = 0
    table = pa.table({"source": sources_of(recordings, named="id"), "frames": frames})
    sums = table.group_by("source").aggregate([("frames", "sum")])
    return dict(zip(sums["source"].to_pylist(), sums["frames_sum"].to_pylist(), strict=True))


def _frames(num_samples: Samples, rate_hz: float) -> Samples:
    return (num_samples * rate_hz / SAMPLE_RATE_HZ).astype(np.int64)
