"""Official scores of a suite from the log-probabilities of its utterances.

A pair counts 1 where its positive is likelier than its negative, 0.5 where both are equal and 0
else; the score of an item is the mean over its voices, a figure the mean over its items (or, for a
macro mean, over strata of such means). Whether log-probabilities are sums or means per token is
the model's business: both are compared as they come.

The 95 % intervals are percentiles of a bootstrap over items: an item is drawn with all its voices,
within its stratum. Two models are compared by drawing the same items for both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jobs.scoring.suites import layout
from jobs.scoring.suites.suite import CHANCE, Figure, Pair, Suite
from orchestrator.errors import DataError
from orchestrator.stratified import Floats, interval_95, stratified_mean

NEAR = 1e-5
"""Log-probabilities that differ by less may change places with the order of a sum."""
RULE = (
    "a pair counts 1 where log p(positive) > log p(negative), 0.5 where they are equal, 0 else; "
    "mean over the voices of a pair, then over pairs; 95 % intervals by a bootstrap over pairs, "
    "each with all its voices"
)


class SplitScores(NamedTuple):
    """One split of a suite under one model."""

    items: dict[str, list[Pair]]
    scores: Floats
    """Of each item, in [0, 1]."""
    margins: Floats
    """log p(positive) - log p(negative) of each pair, item by item."""


def score_suite(
    suite: Suite, log_probs: Mapping[str, float], *, bootstrap_samples: int, seed: int
) -> dict[str, Any]:
    """A JSON document with each official figure of each split, its size, chance and 95 % interval.

    ``log_probs``: one for each of ``suite.files``, by utterance id. Raises DataError for one that
    is missing, not of the suite, or no finite number.
    """
    splits = {}
    for split in suite.splits:
        scored = score_split(suite, log_probs, split)
        figures = layout(suite.kind).figures(scored.items) if scored.items else []
        splits[split] = _counts(suite, split, scored) | {
            "figures": [
                _row(figure, scored.items)
                | {
                    "value": stratified_mean(scored.scores, figure.strata),
                    "interval_95": interval_95(
                        scored.scores, figure.strata, bootstrap_samples, seed
                    ),
                    "chance": CHANCE,
                }
                for figure in figures
            ],
        }
    return _document(suite, bootstrap_samples, seed) | {"splits": splits}


def items_of(suite: Suite, log_probs: Mapping[str, float]) -> dict[str, Any]:
    """What two models are compared by, whoever does it: each split's items, their scores, figures.

    A JSON document; of figures those that papers quote, with the positions of their strata's items.
    Raises DataError as `score_suite` does.
    """
    splits = {}
    for split in suite.splits:
        scored = score_split(suite, log_probs, split)
        figures = layout(suite.kind).figures(scored.items) if scored.items else []
        splits[split] = {
            "items": list(scored.items),
            "scores": scored.scores.tolist(),
            "figures": {f.name: [list(s) for s in f.strata] for f in figures if not f.table},
        }
    return {"fingerprint": suite.fingerprint, "splits": splits}


def compare(
    suite: Suite,
    a: Mapping[str, float],
    b: Mapping[str, float],
    *,
    bootstrap_samples: int,
    seed: int,
) -> dict[str, Any]:
    """A JSON document with the difference of two models, ``a`` minus ``b``, in each figure.

    Its interval is of a paired bootstrap: the same items are drawn for both. Raises DataError as
    `score_suite` does.
    """
    splits = {}
    for split in suite.splits:
        ours, theirs = score_split(suite, a, split), score_split(suite, b, split)
        figures = layout(suite.kind).figures(ours.items) if ours.items else []
        gain = ours.scores - theirs.scores
        splits[split] = {
            "figures": [
                _row(figure, ours.items)
                | {
                    "a": stratified_mean(ours.scores, figure.strata),
                    "b": stratified_mean(theirs.scores, figure.strata),
                }
                | _difference(figure, gain, bootstrap_samples, seed)
                for figure in figures
            ]
        }
    return _document(suite, bootstrap_samples, seed) | {"splits": splits}


def score_split(suite: Suite, log_probs: Mapping[str, float], split: str) -> SplitScores:
    """The scores of a split's items. Raises DataError as `score_suite` does."""
    require_complete(suite, log_probs)
    items = suite.items(split)
    scores, margins = [], []
    for pairs in items.values():
        apart = [log_probs[pair.positive] - log_probs[pair.negative] for pair in pairs]
        scores.append(np.average([*map(won, apart)], weights=[pair.weight for pair in pairs]))
        margins += apart
    return SplitScores(items, np.array(scores, float), np.array(margins, float))


def won(margin: float) -> float:
    """What a pair counts whose positive's log-probability is so much above its negative's."""
    return 0.5 * (margin == 0) + (margin > 0)


def require_complete(suite: Suite, log_probs: Mapping[str, float]) -> None:
    """Raise DataError unless there is one finite log-probability for each file of a suite."""
    where = f"scores of {suite.kind}"
    if gone := [name for name in suite.files if name not in log_probs]:
        raise DataError(f"{where}: {len(gone)} utterances have none, {gone[0]} first; score them")
    if extra := [name for name in log_probs if name not in suite.files]:
        raise DataError(
            f"{where}: {len(extra)} are of no utterance of the suite, {extra[0]} first; "
            "score the suite that is there now"
        )
    if odd := [name for name, value in log_probs.items() if not math.isfinite(value)]:
        raise DataError(
            f"{where}: {len(odd)} are no finite numbers, {odd[0]} first ({log_probs[odd[0]]}); "
            "see whether the model's weights are finite, and score in fp32"
        )


def _document(suite: Suite, bootstrap_samples: int, seed: int) -> dict[str, Any]:
    return {
        "suite": suite.kind,
        "name": suite.name,
        "fingerprint": suite.fingerprint,
        "rule": RULE,
        "bootstrap_samples": bootstrap_samples,
        "seed": seed,
    }


def _counts(suite: Suite, split: str, scored: SplitScores) -> dict[str, Any]:
    apart = np.abs(scored.margins)
    return {
        "num_utterances": len(suite.files_of(split)),
        "num_pairs": len(scored.items),
        "num_voice_pairs": len(scored.margins),
        "num_ties": int((apart == 0).sum()),
        "num_near_ties": int(((apart > 0) & (apart < NEAR)).sum()),
    }


def _row(figure: Figure, items: Mapping[str, Sequence[Pair]]) -> dict[str, Any]:
    sizes = [len(pairs) for pairs in items.values()]
    where = [n for stratum in figure.strata for n in stratum]
    return {
        "name": figure.name,
        "table": figure.table,
        "definition": figure.definition,
        "num_pairs": len(where),
        "num_voice_pairs": sum(sizes[n] for n in where),
    }


def _difference(figure: Figure, gain: Floats, bootstrap_samples: int, seed: int) -> dict[str, Any]:
    interval = interval_95(gain, figure.strata, bootstrap_samples, seed)
    return {
        "difference": stratified_mean(gain, figure.strata),
        "difference_95": interval,
        "excludes_zero": interval is not None and (interval[0] > 0 or interval[1] < 0),
    }
