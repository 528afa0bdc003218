"""Windows are a pure function of the length, wherever reading begins."""

from __future__ import annotations

import math
from itertools import chain, pairwise

import numpy as np
import pytest

from jobs.audio.windows import Stretch, count, next_window, stretches, to_be_read
from orchestrator.spec.recipe import Windows

WINDOWS = Windows(min_s=0.1, max_s=1.0, max_pause_s=0.25)
MOST = 16_000


def cut(
    of: list[Stretch], num_samples: int, first: int, end: int | None, expected: int
) -> list[tuple[int, int, int]]:
    """Number, start and length of the windows that a reader of a part finds."""
    found = []
    for number, start, stop, _ in to_be_read(of, first, end, expected, WINDOWS):
        while end is None or number < end:
            left = min(num_samples, stop or num_samples) - start
            if left <= 0:
                break
            length = next_window(left, MOST)
            if number >= first:
                found.append((number, start, length))
            number, start = number + 1, start + length
    return found


@pytest.mark.parametrize(
    ("num_samples", "lengths"),
    [
        (1, [1]),
        (MOST, [MOST]),
        (MOST + 1, [MOST // 2, MOST // 2 + 1]),
        (2 * MOST, [MOST, MOST]),
        (2 * MOST + 2, [MOST, MOST // 2 + 1, MOST // 2 + 1]),
        (5 * MOST // 2, [MOST, 3 * MOST // 4, 3 * MOST // 4]),
    ],
)
def test_all_windows_are_as_long_as_may_be_but_the_last_two(
    num_samples: int, lengths: list[int]
) -> None:
    found = cut([Stretch(0, None)], num_samples, 0, None, num_samples)
    assert [length for _, _, length in found] == lengths
    assert count([Stretch(0, None)], num_samples, WINDOWS) == len(lengths)


@pytest.mark.parametrize("seed", range(40))
def test_parts_read_apart_are_the_whole_whatever_the_header_said(seed: int) -> None:
    rng = np.random.default_rng(seed)
    of = [Stretch(0, None)]
    if seed % 2:
        edges = np.cumsum(rng.integers(1, 3 * MOST, size=6)).tolist()
        of = [Stretch(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    num_samples = int(rng.integers(1, 9 * MOST))
    expected = max(int(num_samples * rng.choice([0.3, 1.0, 1.0, 3.0])), 1)
    most = count(of, expected, WINDOWS)
    whole = cut(of, num_samples, 0, None, expected)
    bounds = [0, *sorted(set(rng.integers(1, most + 1, size=3).tolist()) - {most}), None]
    parts = (cut(of, num_samples, a, b, expected) for a, b in pairwise(bounds))
    assert list(chain.from_iterable(parts)) == whole
    assert [number for number, _, _ in whole] == sorted({number for number, _, _ in whole})


def test_short_pauses_are_kept_and_long_ones_are_not() -> None:
    spans_s = ((0.1, 0.3), (0.4, 0.6), (0.9, 1.0), (1.2, 1.3), (2.0, 4.5))
    assert stretches(spans_s, WINDOWS) == [
        Stretch(1_600, 9_600),
        Stretch(14_400, 20_800),
        Stretch(32_000, 72_000),
    ]
    assert count(stretches(spans_s, WINDOWS), 0, WINDOWS) == 5


def test_what_is_joined_fits_into_a_window() -> None:
    spans_s = tuple((n * 0.4, n * 0.4 + 0.3) for n in range(6))
    assert stretches(spans_s, WINDOWS) == [
        Stretch(0, 11_200),
        Stretch(12_800, 24_000),
        Stretch(25_600, 36_800),
    ]


def test_no_spans_are_all_of_it() -> None:
    assert stretches((), WINDOWS) == [Stretch(0, None)]


def test_what_overlaps_is_heard_once() -> None:
    spans_s = ((0.0, 0.9), (0.8, 1.7), (1.0, 1.2), (2.5, 2.5))
    assert stretches(spans_s, WINDOWS) == [Stretch(0, 27_200)]


def test_an_infinite_end_is_the_files() -> None:
    of = stretches(((2.0, math.inf),), WINDOWS)
    assert of == [Stretch(32_000, None)]
    assert cut(of, 56_000, 0, None, 0) == [(0, 32_000, 12_000), (1, 44_000, 12_000)]
    assert stretches(((1.0, 1.0),), WINDOWS) == [], "which is not all of it"
