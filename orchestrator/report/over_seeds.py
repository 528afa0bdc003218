"""The mean of a ratio over training seeds, and how far another choice of seeds might move it."""

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


def geometric_mean_95(ratios: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The geometric mean of two ratios or more, and the ends of its 95 % interval.

    By Student's t on their logarithms: seeds are few, and a bootstrap of few is too narrow.
    """
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    t = _T_975[min(len(logs) - 1, len(_T_975)) - 1]
    half = t * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), (math.exp(mean - half), math.exp(mean + half))
