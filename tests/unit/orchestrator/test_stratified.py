"""Means over strata, and their bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.stratified import interval_95, resampled, stratified_mean

SCORES_I = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.5])


def test_each_stratum_counts_alike_whatever_its_size() -> None:
    assert stratified_mean(SCORES_I, [range(6)]) == pytest.approx(3.5 / 6)
    assert stratified_mean(SCORES_I, [[0], [1, 4]]) == 0.5


def test_items_are_drawn_within_their_stratum() -> None:
    drawn = resampled(SCORES_I, [[0, 2], [1, 4]], 200, seed=0)
    assert (drawn == 0.5).all()


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    """Against the normal one of as many items; the same draws for the same seed."""
    scores_I = (np.random.default_rng(1).random(400) < 0.7).astype(float)
    found = interval_95(scores_I, [range(400)], 2_000, seed=0)
    assert found
    mean, half = scores_I.mean(), 1.96 * scores_I.std() / 20
    assert found == pytest.approx([mean - half, mean + half], abs=0.006)
    assert interval_95(scores_I, [range(400)], 2_000, seed=0) == found


def test_a_stratum_of_a_single_item_has_no_interval() -> None:
    assert interval_95(SCORES_I, [[0], [1, 4]], 100, seed=0) is None
