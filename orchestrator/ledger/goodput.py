"""Where a run's wall-clock time went, from what its attempts have written down.

In: the attempts of every stage instance. Out: seconds by part, which add up to the elapsed time.
Each attempt is cut, without a gap, into intervals that carry the name of a part; a sweep over the
intervals of all attempts then gives every instant to one part, so that stages side by side count
once.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, NamedTuple

from orchestrator.ledger.attempt import AttemptFolder
from orchestrator.plan.stages import BY_NAME

PART_NAMES = {
    "productive": "productive",
    "checkpoint": "checkpoint stall",
    "lost": "lost",
    "restart": "restart",
    "startup": "start-up",
    "queue": "queue",
    "idle": "idle",
}
"""Every part and what people call it."""

_PRIORITY = ("productive", "checkpoint", "lost", "startup", "restart", "queue")
"""Which part an instant belongs to where intervals overlap; idle is what no interval covers."""


class Interval(NamedTuple):
    """A stretch of time that one attempt spent on one part."""

    began_at: float
    ended_at: float
    part: str


@dataclass(frozen=True, kw_only=True)
class _AttemptSpan:
    """One attempt, reduced to what its accounting needs."""

    created_at: float
    begun_at: float
    """When its process was at work: before that it waited."""
    ended_at: float
    """Of a running attempt: now."""
    state: str
    is_left: bool = False
    """Whether it ended so that nobody was to try again by themselves: cancelled, or given up."""
    steps: tuple[Mapping[str, Any], ...] = ()
    """The lines of its optimizer steps: their number, end, duration and the stall for saving."""

    @property
    def outcome(self) -> str:
        """The part its work belongs to: what still runs is productive until it says otherwise."""
        return "productive" if self.state in ("succeeded", "running") else "lost"


def accounted(
    attempts_by_instance: Mapping[str, Sequence[AttemptFolder]],
    *,
    submitted_at: float | None = None,
    is_alive: bool = True,
    supervised: Sequence[tuple[float, float]] = (),
) -> list[Interval]:
    """What each attempt spent its time on; intervals of different instances overlap.

    Attempts are listed oldest first under their instance's id. Time from ``submitted_at`` to the
    first of them is queue. With nobody alive, an attempt that nobody ended is taken to have ended
    with its last sign of life. ``supervised`` is when a supervisor was at work, where runs have
    one: between two attempts, what lies outside of it is idle, as is the time after an end that
    nobody was to retry.
    """
    now = time.time()
    intervals = [
        interval
        for instance_id, attempts in attempts_by_instance.items()
        for interval in _of_instance(
            _spans(attempts, now if is_alive else None),
            trains=_has_ranks(instance_id),
            supervised=supervised,
        )
    ]
    if submitted_at is not None:
        otherwise = now if is_alive else submitted_at
        first_at = min((i.began_at for i in intervals), default=otherwise)
        intervals.append(Interval(submitted_at, first_at, "queue"))
    return intervals


def summed(intervals: Sequence[Interval]) -> dict[str, float | None]:
    """Seconds of every part, their sum ``elapsed_s``, and ``ettr``.

    ``ettr`` is the effective training time ratio: productive runtime over available wall-clock time
    (Revisiting Reliability in Large-Scale Machine Learning Research Clusters, arXiv 2410.21680).
    The time in queue is not counted as available here: the ratio tells of the run, not of how busy
    the cluster was. None when nothing has run.
    """
    seconds = sweep(intervals)
    run_s = math.fsum(s for part, s in seconds.items() if part != "queue")
    return {
        "elapsed_s": math.fsum(seconds.values()),
        **{f"{part}_s": s for part, s in seconds.items()},
        "ettr": seconds["productive"] / run_s if run_s else None,
    }


def _has_ranks(instance_id: str) -> bool:
    """Whether the stage of an instance ``<stage>[.part]-<key>`` trains, and writes step lines."""
    stage = BY_NAME.get(instance_id.partition("-")[0].partition(".")[0])
    return stage is not None and stage.has_ranks


def goodput_line(parts: Mapping[str, float | None]) -> str:
    """The goodput in one line of text: the share of every part, and the ETTR."""
    if not parts["elapsed_s"]:
        return "goodput: nothing has run yet"
    shares = ", ".join(
        f"{share:.1f} % {PART_NAMES[part]}" for part, share in shares_percent(parts).items()
    )
    ettr = parts["ettr"]
    return f"goodput: {shares}; ETTR {'unknown' if ettr is None else f'{ettr:.2f}'}"


def shares_percent(parts: Mapping[str, float | None]) -> dict[str, float]:
    """The share of every part in the elapsed time; empty when no time has elapsed."""
    elapsed_s = parts.get("elapsed_s")
    if not elapsed_s:
        return {}
    return {part: 100 * (parts[f"{part}_s"] or 0.0) / elapsed_s for part in PART_NAMES}


def sweep(intervals: Iterable[Interval]) -> dict[str, float]:
    """Seconds of every part: each instant between the first and the last edge counts once."""
    spans_s: dict[str, list[float]] = {part: [] for part in PART_NAMES}
    for began_at, ended_at, part in _stretches(intervals):
        spans_s[part].append(ended_at - began_at)
    return {part: math.fsum(spans) for part, spans in spans_s.items()}


def timeline(intervals: Iterable[Interval]) -> list[Interval]:
    """What the run as a whole spent its time on, from its first instant to its last."""
    merged: list[Interval] = []
    for stretch in _stretches(intervals):
        if merged and merged[-1].part == stretch.part:
            merged[-1] = merged[-1]._replace(ended_at=stretch.ended_at)
        else:
            merged.append(stretch)
    return merged


def _stretches(intervals: Iterable[Interval]) -> Iterator[Interval]:
    """Each instant between the first and the last edge once, in order."""
    edges = sorted(
        edge
        for began_at, ended_at, part in intervals
        if ended_at > began_at
        for edge in ((began_at, part, 1), (ended_at, part, -1))
    )
    open_now: Counter[str] = Counter()
    for (at, part, change), (until, _, _) in pairwise(edges):
        open_now[part] += change
        if until > at:
            yield Interval(at, until, next((p for p in _PRIORITY if open_now[p]), "idle"))


def _of_instance(
    spans: Sequence[_AttemptSpan], *, trains: bool, supervised: Sequence[tuple[float, float]]
) -> list[Interval]:
    """The intervals of all attempts of a stage instance and of the gaps before its retries."""
    intervals: list[Interval] = []
    redone_from = math.inf
    for before, span in reversed(list(zip([None, *spans], spans, strict=False))):
        wait, warm_up = "queue", "startup"
        if before and before.state != "succeeded":
            wait, warm_up = "restart", "restart"
            intervals += _gap(before, span.created_at, supervised)
        cuts = _training(span, warm_up, redone_from) if trains else [(span.ended_at, span.outcome)]
        intervals += _cut(span, [(span.begun_at, wait), *cuts])
        if span.steps:
            redone_from = min(redone_from, span.steps[0]["step"])
    return intervals


def _gap(
    before: _AttemptSpan, until: float, supervised: Sequence[tuple[float, float]]
) -> Iterator[Interval]:
    """The time from an attempt's end to the next one in which somebody was to start that."""
    if before.is_left:
        return
    for began_at, ended_at in supervised or [(before.ended_at, until)]:
        start, end = max(began_at, before.ended_at), min(ended_at, until)
        if start < end:
            yield Interval(start, end, "restart")


def _training(span: _AttemptSpan, warm_up: str, redone_from: float) -> list[tuple[float, str]]:
    """Until when a training attempt did what, from its begin to its end.

    What lies between two steps, such as validation, belongs to the second of them.
    """
    if not span.steps:
        is_warming_up = span.state == "running" or warm_up == "restart"
        return [(span.ended_at, warm_up if is_warming_up else span.outcome)]
    first = span.steps[0]
    steps = chain.from_iterable(
        (
            (step["at"], "lost" if step["step"] >= redone_from else "productive"),
            (step["at"] + step["stall_s"], "checkpoint"),
        )
        for step in span.steps
    )
    return [(first["at"] - first["step_s"], warm_up), *steps, (span.ended_at, span.outcome)]


def _cut(span: _AttemptSpan, cuts: Iterable[tuple[float, str]]) -> Iterator[Interval]:
    """The attempt's time, cut at the given instants.

    Clocks of different machines may disagree, so no cut goes back, or beyond the attempt's end.
    """
    reached = span.created_at
    for until, part in cuts:
        at = min(max(until, reached), span.ended_at)
        yield Interval(reached, at, part)
        reached = at


def _spans(attempts: Sequence[AttemptFolder], now: float | None) -> list[_AttemptSpan]:
    """What the attempts of an instance have written; without ``now`` nobody is alive."""
    starts = [attempt.started_at for attempt in attempts]
    return [
        _span(attempt, next_at, now)
        for attempt, next_at in zip(attempts, [*starts[1:], None], strict=False)
    ]


def _span(attempt: AttemptFolder, next_at: float | None, now: float | None) -> _AttemptSpan:
    created_at = attempt.started_at
    steps = tuple(attempt.steps())
    ended_at, state = _end(attempt, steps, next_at, now)
    begin = next((e for e in attempt.events() if e["kind"] == "begin"), None)
    # The queue ends with the birth of the process, which then imports for seconds.
    begun_at = max(begin.get("born_at", begin["at"]), created_at) if begin else None
    if begun_at is None:
        # It waits, or was cancelled while it did; else it died before its first events were out.
        has_waited_only = state in ("running", "cancelled") and not steps
        begun_at = ended_at if has_waited_only else created_at
    return _AttemptSpan(
        created_at=created_at,
        begun_at=begun_at,
        ended_at=max(ended_at, created_at),
        state=state,
        is_left=state == "cancelled" or (attempt.end or {}).get("action") == "stop",
        steps=steps,
    )


def _end(
    attempt: AttemptFolder,
    steps: Sequence[Mapping[str, Any]],
    next_at: float | None,
    now: float | None,
) -> tuple[float, str]:
    """When and how it ended.

    Where nobody has said so: at the latest when the next one started, or with the last sign of life
    when nobody is alive.
    """
    if end := attempt.end:
        return end["ended_at"], end["state"]
    if next_at is not None:
        return next_at, "unknown"
    if now is not None:
        return now, "running"
    return attempt.last_sign(*(step["at"] + step["stall_s"] for step in steps[-1:])), "unknown"
