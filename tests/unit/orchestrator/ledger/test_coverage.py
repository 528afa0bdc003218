from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import CorruptError
from orchestrator.ledger.coverage import replay
from orchestrator.plan.mixture import Stream
from orchestrator.plan.token_order import HASH_START, TokenOrder, chain_hash

FACTS = {"num_windows": 10, "seed": 3, "global_batch": 4, "skips": [6]}


def lines(facts: dict[str, Any], steps: int) -> list[dict[str, Any]]:
    """What an honest training records."""
    order = TokenOrder(
        facts["num_windows"],
        seed=facts["seed"],
        skips=frozenset(facts["skips"]),
        mixture=[Stream(**stream) for stream in facts.get("mixture", ())],
    )
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


MIXED: dict[str, Any] = {
    **FACTS,
    "skips": [],
    "mixture": [
        {"name": "books", "num_windows": 7, "weight": 1},
        {"name": "talks", "num_windows": 3, "weight": 3},
    ],
}


def test_each_source_of_a_mixture_is_covered_by_itself() -> None:
    """28 positions: 7 of books, 21 of talks."""
    assert replay(MIXED, lines(MIXED, 7), 7) == (
        "books: each of 7 windows used 1 times; talks: each of 3 windows used 7 times"
    )
    assert replay(MIXED, lines(MIXED, 5), 5) == (
        "books: each of 7 windows used 0 or 1 times; talks: each of 3 windows used 5 times"
    )


@pytest.mark.parametrize(
    "other",
    [
        {"mixture": []},
        {"mixture": [{**MIXED["mixture"][0], "weight": 3}, MIXED["mixture"][1]]},
        {"mixture": MIXED["mixture"][::-1]},
    ],
    ids=["none", "weights", "order"],
)
def test_another_mixture_is_found(other: dict[str, Any]) -> None:
    with pytest.raises(CorruptError, match="other windows than the order's"):
        replay(MIXED, lines({**MIXED, **other}, 7), 7)


@pytest.mark.parametrize(
    "streams",
    [
        MIXED["mixture"][:1],
        [{"name": "books"}],
        [{**MIXED["mixture"][0], "weight": 0}, MIXED["mixture"][1]],
    ],
    ids=["fewer windows", "no windows", "no weight"],
)
def test_a_mixture_that_is_none_is_corrupt(streams: list[dict[str, Any]]) -> None:
    with pytest.raises(CorruptError, match="the manifest's mixture"):
        replay({**MIXED, "mixture": streams}, lines(MIXED, 7), 7)


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
