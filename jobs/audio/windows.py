"""Cuts recordings into utterances: a pure function of the decoded length, taken while decoding.

A recording is one stretch of time, or several where its corpus says when there is speech. Stretches
that fit into one utterance, with short pauses between them, are joined; what is longer than
``max_s`` is cut into windows of that length, the last two of which are alike. Windows are numbered
over the whole recording as if no stretch ended before its end, so that a window has the same number
for readers who begin anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, isinf
from typing import NamedTuple

from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Windows


class Stretch(NamedTuple):
    """A part of a recording that is used as a whole, in samples at 16 kHz."""

    start: int
    end: int | None
    """None for the end of the recording."""


def stretches(spans_s: Sequence[tuple[float, float]], windows: Windows) -> list[Stretch]:
    """What a recording is cut from: ``spans_s`` in seconds, or all of it where there are none.

    Neighbours are joined as long as they fit into ``max_s`` and pauses are at most ``max_pause_s``;
    what overlaps is one stretch, or its audio would be used twice. An infinite end is the file's.
    """
    if not spans_s:
        return [Stretch(0, None)]
    joined: list[tuple[float, float]] = []
    for start_s, end_s in sorted(span for span in spans_s if span[1] > span[0]):
        if joined and _belongs(joined[-1], (start_s, end_s), windows):
            joined[-1] = (joined[-1][0], max(end_s, joined[-1][1]))
        else:
            joined.append((start_s, end_s))
    return [
        Stretch(_samples(start_s), None if isinf(end_s) else _samples(end_s))
        for start_s, end_s in joined
    ]


def _belongs(before: tuple[float, float], span: tuple[float, float], windows: Windows) -> bool:
    overlaps = span[0] < before[1]
    is_near = span[0] - before[1] <= windows.max_pause_s
    return overlaps or (is_near and span[1] - before[0] <= windows.max_s)


def count(of: Sequence[Stretch], num_samples: int, windows: Windows) -> int:
    """How many windows a recording of this length has, where each stretch is whole."""
    return sum(_count(s, num_samples, max_samples(windows)) for s in of)


def max_samples(windows: Windows) -> int:
    """Samples of the longest utterance."""
    return _samples(windows.max_s)


def next_window(left: int, most: int) -> int:
    """Samples of the next window where ``left`` samples are left of a stretch.

    What is not more than ``2 * most`` need not be known more exactly to be cut.
    """
    if left > 2 * most:
        return most
    return left if left <= most else left // 2


class Numbered(NamedTuple):
    """A stretch, or the end of one, to be read."""

    number: int
    """Of its first window."""
    start: int
    end: int | None
    skipped: int
    """Windows at its beginning that only say where those after them begin."""


def to_be_read(
    of: Sequence[Stretch], first: int, end: int | None, num_samples: int, windows: Windows
) -> Iterator[Numbered]:
    """The stretches that hold the windows ``first`` up to ``end``; None for all that there are.

    ``num_samples`` is what the recording is expected to have; the last stretch may go on.
    """
    most, number = max_samples(windows), 0
    for stretch in of:
        upcoming = number + _count(stretch, num_samples, most)
        is_open = stretch.end is None
        if (first < upcoming or is_open) and (end is None or number < end):
            # Whether a window is as long as it may be is known from the one before it.
            passed = max(first - number - 1, 0)
            yield Numbered(
                number + passed,
                stretch.start + passed * most,
                stretch.end,
                max(first - number - passed, 0),
            )
        number = upcoming


def _count(stretch: Stretch, num_samples: int, most: int) -> int:
    end = num_samples if stretch.end is None else stretch.end
    return max(ceil((end - stretch.start) / most), 1)


def _samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE_HZ)
