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
