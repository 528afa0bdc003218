from __future__ import annotations

import numpy as np
import pytest

from jobs.lm.task import learning_rate, validation_windows
from orchestrator.spec.recipe import Schedule


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


def rates(kind: str, steps: int = 100, warmup: int = 10) -> list[float]:
    schedule = Schedule.model_validate({"kind": kind, "warmup_steps": warmup})
    return [
        learning_rate(step, schedule=schedule, peak=1.0, steps=steps)
        for step in range(1, steps + 1)
    ]


@pytest.mark.parametrize("kind", ["inverse_sqrt", "cosine", "constant"])
def test_warm_up_is_linear_and_reaches_the_peak(kind: str) -> None:
    assert rates(kind)[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert max(rates(kind)) == 1.0


def test_inverse_sqrt() -> None:
    assert rates("inverse_sqrt")[39] == pytest.approx(0.5)  # step 40: sqrt(10 / 40)
    assert rates("inverse_sqrt", warmup=0)[3] == pytest.approx(0.5)  # step 4: sqrt(1 / 4)


def test_cosine_ends_at_a_tenth() -> None:
    after = rates("cosine")[9:]
    assert after == sorted(after, reverse=True)
    assert after[45] == pytest.approx(0.55)  # half way
    assert after[-1] == pytest.approx(0.1)


def test_constant() -> None:
    assert set(rates("constant")[9:]) == {1.0}
