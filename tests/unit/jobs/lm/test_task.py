from __future__ import annotations

import numpy as np
import pytest

from jobs.lm.task import validation_windows


def test_validation_uses_whole_windows() -> None:
    windows_BL1 = validation_windows(np.arange(100, dtype="<u2"), 8)
    assert windows_BL1.shape == (12, 9)
    assert windows_BL1[:, 0].tolist() == list(range(0, 96, 8))


def test_validation_of_a_large_split_is_spread_over_it() -> None:
    windows_BL1 = validation_windows(np.arange(60_000, dtype="<u2"), 8)
    assert windows_BL1.shape == (256, 9)
    assert windows_BL1[0, 0] == 0
    assert windows_BL1[-1, -1] == 7499 * 8
    assert len(np.unique(windows_BL1[:, 0])) == 256


@pytest.mark.parametrize(
    ("num_tokens", "shape"), [(0, (0, 0)), (1, (0, 0)), (2, (1, 2)), (8, (1, 8)), (9, (1, 9))]
)
def test_validation_of_a_small_split(num_tokens: int, shape: tuple[int, int]) -> None:
    assert validation_windows(np.arange(num_tokens, dtype="<u2"), 8).shape == shape
