"""A mean of means over strata of items, and its 95 % interval by a bootstrap within the strata.

Scores of suites are such means: one stratum is a mean over items, several make a macro mean. Two
models are compared by the same of their items' differences, so that both get the same draws.

Shape legend: I items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Strata = Sequence[Sequence[int]]
"""Positions of items."""
_DRAWS_AT_ONCE = 4_000_000


def stratified_mean(scores_I: Floats, strata: Strata) -> float:
    """The mean over strata of the mean over each one's items."""
    return float(np.mean([scores_I[list(stratum)].mean() for stratum in strata]))


def interval_95(
    scores_I: Floats, strata: Strata, num_resamplings: int, seed: int
) -> list[float] | None:
    """Both ends, percentiles of the bootstrap.

    None where it would have no width: where a single item stands for a stratum.
    """
    if min(map(len, strata)) < 2:
        return None
    values = resampled(scores_I, strata, num_resamplings, seed)
    low, high = np.percentile(values, [2.5, 97.5]).tolist()
    return [low, high]


def resampled(scores_I: Floats, strata: Strata, num_resamplings: int, seed: int) -> Floats:
    """The mean of each resampling of the items; what is drawn depends on the seed and sizes."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    total = np.zeros(num_resamplings)
    for stratum in strata:
        own = scores_I[list(stratum)]
        step = max(1, _DRAWS_AT_ONCE // len(own))
        for first in range(0, num_resamplings, step):
            num = min(step, num_resamplings - first)
            total[first : first + num] += own[rng.integers(0, len(own), (num, len(own)))].mean(1)
    return total / len(strata)
