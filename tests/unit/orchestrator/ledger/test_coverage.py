from __future__ import annotations

from typing import Any

import pytest

from orchestrator.ledger.coverage import Coverage, replay, steps_problem
from orchestrator.plan.token_order import HASH_START, TokenOrder, chain_hash

FACTS = {"num_windows": 10, "seed": 3, "global_batch": 4, "skips": [6]}


def lines(facts: dict[str, Any], steps: int) -> list[dict[str, Any]]:
    """What an honest training records."""
    order = TokenOrder(facts["num_windows"], seed=facts["seed"], skips=frozenset(facts["skips"]))
    said, running = [], HASH_START
    for number, draw in enumerate(order.batches(steps, facts["global_batch"]), start=1):
        running = chain_hash(running, draw.windows)
        said.append({"step": number, "sample_hash": running})
    return said


def test_an_honest_training_is_covered() -> None:
    found = replay(FACTS, lines(FACTS, 7))
    assert found == Coverage(num_windows=10, fewest=2, most=3, num_skipped=1)
    assert str(found) == "each of 10 windows used 2 or 3 times, 1 uses skipped"
    whole = replay({**FACTS, "skips": []}, lines({**FACTS, "skips": []}, 5))
    assert str(whole) == "each of 10 windows used 2 times"


@pytest.mark.parametrize("field", ["seed", "global_batch", "skips", "num_windows"])
def test_any_other_order_is_found_at_its_first_step(field: str) -> None:
    other = {**FACTS, field: {"seed": 4, "global_batch": 5, "skips": [], "num_windows": 11}[field]}
    found = replay(FACTS, lines(other, 7))
    assert isinstance(found, str)
    assert "other windows than the order's" in found
    assert ("step 2" if field == "skips" else "step 1") in found


def test_a_batch_used_twice_is_found() -> None:
    said = lines(FACTS, 7)
    again = chain_hash(said[3]["sample_hash"], TokenOrder(10, seed=3).draw(0, 4).windows)
    found = replay(FACTS, [*said[:4], {"step": 5, "sample_hash": again}])
    assert found == "step 5: other windows than the order's were used up to here"


def test_a_manifest_of_before_cannot_be_replayed() -> None:
    assert "does not say seed, skips" in str(replay({"num_windows": 1, "global_batch": 1}, []))


@pytest.mark.parametrize(
    ("steps", "said"), [([1, 2, 3], ""), ([1, 3], "steps are not 1..3"), ([1, 2, 2], "steps are")]
)
def test_steps_are_counted(steps: list[int], said: str) -> None:
    assert steps_problem(steps, 3).startswith(said)
    assert bool(steps_problem(steps, 3)) == bool(said)
