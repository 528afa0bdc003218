"""Where a run's wall-clock time went, from its attempts alone."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from orchestrator.ledger.run import AttemptFolder


def goodput(attempts: Iterable[AttemptFolder]) -> dict[str, Any]:
    """Seconds of attempts that ended in their artifact, of those that did not, and in between.

    ``elapsed_s`` runs from the first attempt's start to the last one's end. Attempts of independent
    stages overlap, so the parts are unions of intervals and
    ``useful_s + lost_s + idle_s == elapsed_s``.
    """
    useful: list[tuple[float, float]] = []
    lost: list[tuple[float, float]] = []
    for attempt in attempts:
        end = attempt.end
        span = (attempt.started["started_at"], end["ended_at"] if end else time.time())
        running_or_done = end is None or end["state"] == "succeeded"
        (useful if running_or_done else lost).append(span)
    if not useful and not lost:
        return {"elapsed_s": 0.0, "useful_s": 0.0, "lost_s": 0.0, "idle_s": 0.0}
    spans = useful + lost
    elapsed_s = max(e for _, e in spans) - min(s for s, _ in spans)
    useful_s, busy_s = _covered_s(useful), _covered_s(spans)
    return {
        "elapsed_s": elapsed_s,
        "useful_s": useful_s,
        "lost_s": busy_s - useful_s,
        "idle_s": elapsed_s - busy_s,
    }


def _covered_s(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered
