"""Means over seeds and their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from orchestrator.report.over_seeds import geometric_mean_95, half_width_95, t_975


def test_the_mean_is_geometric_and_the_interval_students() -> None:
    ratios = [0.2, 0.25, 0.4]
    mean, ends = geometric_mean_95(ratios)
    logs = np.log(ratios)
    half = 4.3027 * logs.std(ddof=1) / math.sqrt(3)  # t of 2 degrees of freedom, 97.5 %
    assert mean == pytest.approx(math.exp(logs.mean()))
    expected = (math.exp(logs.mean() - half), math.exp(logs.mean() + half))
    assert ends == pytest.approx(expected, rel=1e-4)
    mean, ends = geometric_mean_95([0.5, 0.5])
    assert (mean, *ends) == pytest.approx((0.5, 0.5, 0.5))


def test_two_means_differ_within_welchs_interval() -> None:
    first, second = [1.0, 2.0, 4.0], [1.0, 1.5]
    squares = [np.var(side, ddof=1) / len(side) for side in (first, second)]
    degrees = sum(squares) ** 2 / (squares[0] ** 2 / 2 + squares[1] ** 2 / 1)
    assert half_width_95(first, second) == pytest.approx(t_975(degrees) * math.sqrt(sum(squares)))
    assert half_width_95([1.0], [2.0]) == 0  # the choice of seeds is not covered
    assert half_width_95([1.0, 1.0], [2.0, 2.0]) == 0


def test_quantiles_between_degrees_of_freedom_lie_between() -> None:
    assert (t_975(1), t_975(2), t_975(30), t_975(1000)) == (12.706, 4.303, 2.042, 2.042)
    assert t_975(1.5) == pytest.approx(12.706 - (12.706 - 4.303) * 2 / 3)  # the true one is 6.0
    assert 2.571 < t_975(4.5) < 2.776


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 12, 31])
def test_the_quantiles_are_students(num_seeds: int) -> None:
    """By integrating the density: 97.5 % lies below."""
    ratios = np.linspace(0.2, 0.8, num_seeds)
    _, ends = geometric_mean_95([float(ratio) for ratio in ratios])
    half = math.log(ends[1] / ends[0]) / 2
    quantile, df = half / (np.log(ratios).std(ddof=1) / math.sqrt(num_seeds)), num_seeds - 1
    scale = math.gamma((df + 1) / 2) / math.gamma(df / 2) / math.sqrt(df * math.pi)
    x = np.linspace(0, quantile, 100_001)
    below = 0.5 + np.trapezoid(scale * (1 + x**2 / df) ** (-(df + 1) / 2), x)
    assert below == pytest.approx(0.975, abs=1e-4)
