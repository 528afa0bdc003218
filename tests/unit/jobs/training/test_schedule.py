from __future__ import annotations

import pytest

from jobs.training.schedule import learning_rate
from orchestrator.spec.recipe import Schedule


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
