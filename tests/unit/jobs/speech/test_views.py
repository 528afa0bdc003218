"""Spreads of views add up; the worker is in tests/numerics."""

from __future__ import annotations

import pytest
import torch

from jobs.speech.transformer import View
from jobs.speech.views import add, spread_of


def test_parts_add_up_to_the_whole() -> None:
    torch.manual_seed(0)
    feats_ND, centroids_KD = torch.randn(50, 4), torch.randn(5, 4)
    total: dict[View, object] = {}
    for part_ND in feats_ND.split(17):
        add(total, {View(1): spread_of(part_ND, centroids_KD)})
    whole = spread_of(feats_ND, centroids_KD)
    assert total[View(1)].num_frames == 50
    assert total[View(1)].inertia == pytest.approx(whole.inertia)
    assert total[View(1)].unexplained == pytest.approx(whole.unexplained)


def test_a_view_without_numbers_is_none() -> None:
    """A layer may overflow where those below do not."""
    total: dict[View, object] = {}
    centroids_KD = torch.randn(5, 4)
    nothing, some = (
        spread_of(f, centroids_KD) for f in (torch.full((3, 4), torch.nan), torch.randn(3, 4))
    )
    add(total, {View(1): some, View(2): nothing})
    assert list(total) == [View(1)]


def test_features_that_are_all_alike_leave_nothing_to_explain() -> None:
    assert spread_of(torch.zeros(9, 4), torch.randn(5, 4)).unexplained == 1
