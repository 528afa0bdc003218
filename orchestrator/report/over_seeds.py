"""Means over training seeds, and how far another choice of seeds might move them.

By Student's t: seeds are few, and a bootstrap of few is too narrow.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

_T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Quantiles of Student's distribution, by degrees of freedom from 1 on; later ones are the last."""


def t_975(degrees: float) -> float:
    """The quantile of Student's distribution below which 97.5 % lie.

    Between whole degrees of freedom it lies on a line over their inverse, and never below the
    quantile; those above 30 have that of 30.
    """
    last = len(_T_975)
    if degrees >= last:
        return _T_975[-1]
    below = max(1, math.floor(degrees))
    share = (1 / below - 1 / max(degrees, 1)) / (1 / below - 1 / (below + 1))
    return _T_975[below - 1] + share * (_T_975[below] - _T_975[below - 1])


def half_width_95(first: Sequence[float], second: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the difference of two means over seeds.

    After Welch (Biometrika 34, 1947), who does not take both to vary alike. One seed of one side
    tells nothing of how that side varies: it is taken to vary as the other does. 0 where each side
    has one seed, so that the choice of seeds is not covered.
    """
    sides = [s for s in (first, second) if len(s) > 1]
    if not sides:
        return 0.0
    variances = [statistics.variance(s if len(s) > 1 else sides[0]) for s in (first, second)]
    squares = [v / len(s) for v, s in zip(variances, (first, second), strict=True)]
    if not (total := math.fsum(squares)):
        return 0.0
    shares = [square / total for square in squares]
    if len(sides) == 1:
        degrees: float = len(sides[0]) - 1
    else:
        terms = (share**2 / (len(s) - 1) for share, s in zip(shares, sides, strict=True))
        degrees = 1 / math.fsum(terms)
    return t_975(degrees) * math.sqrt(total)


def geometric_mean_95(ratios: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The geometric mean of two ratios or more, and the ends of its 95 % interval.

    By Student's t on their logarithms.
    """
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    half = t_975(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), (math.exp(mean - half), math.exp(mean + half))
