"""Where the time went: the parts are disjoint and add up."""

from __future__ import annotations

import time

import pytest

from orchestrator.ledger.goodput import goodput
from orchestrator.ledger.run import AttemptFolder
from orchestrator.ledger.storage import Storage


def attempts(storage: Storage, *spans: tuple[float, float | None, str]) -> list[AttemptFolder]:
    """Attempts by start, end and final state."""
    folders = []
    for number, (start, end, state) in enumerate(spans, 1):
        folder = storage.at(f"{number:04d}")
        folder.create_json("attempt.json", {"started_at": start})
        if end is not None:
            folder.create_json("end.json", {"ended_at": end, "state": state})
        folders.append(AttemptFolder(number, folder))
    return folders


def parts(elapsed: float, useful: float, lost: float, idle: float) -> dict[str, float]:
    return {"elapsed_s": elapsed, "useful_s": useful, "lost_s": lost, "idle_s": idle}


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ((), parts(0, 0, 0, 0)),
        (((10, 20, "succeeded"),), parts(10, 10, 0, 0)),
        (((10, 20, "failed"),), parts(10, 0, 10, 0)),
        (((10, 20, "preempted"), (25, 35, "succeeded")), parts(25, 10, 10, 5)),
        # Side by side: what is useful is not counted twice, nor lost while something is useful.
        (((10, 20, "succeeded"), (15, 25, "succeeded")), parts(15, 15, 0, 0)),
        (((10, 20, "succeeded"), (15, 25, "failed")), parts(15, 10, 5, 0)),
        (((10, 40, "succeeded"), (15, 25, "succeeded")), parts(30, 30, 0, 0)),
        (((50, 60, "succeeded"), (10, 20, "cancelled")), parts(50, 10, 10, 30)),
    ],
)
def test_parts(
    storage: Storage, spans: tuple[tuple[float, float, str], ...], expected: dict[str, float]
) -> None:
    found = goodput(attempts(storage, *spans))
    assert found == expected
    assert found["useful_s"] + found["lost_s"] + found["idle_s"] == found["elapsed_s"]


def test_what_still_runs_is_useful_until_it_says_otherwise(storage: Storage) -> None:
    started = time.time() - 5
    found = goodput(attempts(storage, (started, None, "")))
    assert 5 <= found["useful_s"] < 60
    assert found["lost_s"] == found["idle_s"] == 0
