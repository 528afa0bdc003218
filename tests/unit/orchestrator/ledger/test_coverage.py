from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import CorruptError
from orchestrator.ledger.coverage import replay
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
    found = replay(FACTS, lines(FACTS, 7), 7)
    assert found == "each of 10 windows used 2 or 3 times, 1 uses skipped"
    whole = {**FACTS, "skips": []}
    assert replay(whole, lines(whole, 5), 5) == "each of 10 windows used 2 times"


@pytest.mark.parametrize("field", ["seed", "global_batch", "skips", "num_windows"])
def test_any_other_order_is_found_at_its_first_step(field: str) -> None:
    other = {**FACTS, field: {"seed": 4, "global_batch": 5, "skips": [], "num_windows": 11}[field]}
    step = 2 if field == "skips" else 1
    with pytest.raises(CorruptError, match=f"^step {step}: other windows than the order's"):
        replay(FACTS, lines(other, 7), 7)


def test_a_batch_used_twice_is_found() -> None:
    said = lines(FACTS, 7)
    again = chain_hash(said[3]["sample_hash"], TokenOrder(10, seed=3).draw(0, 4).windows)
    twice = [*said[:4], {"step": 5, "sample_hash": again}]
    problem = "^step 5: other windows than the order's were used up to here$"
    with pytest.raises(CorruptError, match=problem):
        replay(FACTS, twice, 5)


def test_a_manifest_of_before_cannot_be_replayed() -> None:
    with pytest.raises(CorruptError, match="does not say seed, skips"):
        replay({"num_windows": 1, "global_batch": 1}, [], 0)


@pytest.mark.parametrize("steps", [[1, 3], [1, 2, 2], [1, 2], [1, 2, 3, 4]])
def test_steps_are_counted(steps: list[int]) -> None:
    with pytest.raises(CorruptError, match=r"steps are not 1\.\.3, each once"):
        replay(FACTS, [{"step": step} for step in steps], 3)
