"""ABX against a reading of its definition triple by triple."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest

from jobs.scoring.abx import MAX_SPEAKERS, MAX_TOKENS, Triphone, abx, warped


def dtw(one: Sequence[int], other: Sequence[int]) -> float:
    """Dynamic time warping of two sequences, cell by cell, with its path traced back."""
    cost = np.full((len(one) + 1, len(other) + 1), np.inf)
    cost[0, 0] = 0
    for i in range(1, len(one) + 1):
        for j in range(1, len(other) + 1):
            before = min(cost[i - 1, j - 1], cost[i, j - 1], cost[i - 1, j])
            cost[i, j] = before + (one[i - 1] != other[j - 1])
    i, j, length = len(one), len(other), 0
    while (i, j) != (0, 0):
        length += 1
        ways = [(i - 1, j - 1), (i, j - 1), (i - 1, j)]
        i, j = min((w for w in ways if min(w) >= 0), key=lambda way: cost[way])
    return float(cost[-1, -1] / length)


def apart(said: Sequence[Triphone], one: Triphone, other: Triphone) -> float:
    """The distance of two: what is said first is warped to the other, as a tie may differ."""
    order = [id(t) for t in said]
    first, second = sorted((one, other), key=lambda t: order.index(id(t)))
    return dtw(first.units_T.tolist(), second.units_T.tolist())


def by_triples(said: Sequence[Triphone], *, across: bool) -> float:
    """The mean error of all triples of triphones, pair by pair of phones, speaker by speaker."""
    errors: dict[object, dict[str, dict[object, list[list[float]]]]] = {}
    for context in {t.context for t in said}:
        same = [t for t in said if t.context == context]
        for speaker in {t.speaker for t in same}:
            for a, b in permutations(sorted({t.phone for t in same}), 2):
                of = {
                    phone: [t for t in same if (t.phone, t.speaker) == (phone, speaker)]
                    for phone in (a, b)
                }
                for x_speaker in {t.speaker for t in same}:
                    if (x_speaker != speaker) != across:
                        continue
                    found = []
                    for x in (t for t in same if (t.phone, t.speaker) == (a, x_speaker)):
                        for ta in (t for t in of[a] if t is not x):
                            for tb in of[b]:
                                to_a, to_b = (apart(said, t, x) for t in (ta, tb))
                                found.append(0.5 if to_a == to_b else float(to_a > to_b))
                    if found:
                        by = errors.setdefault((a, b), {}).setdefault(speaker, {})
                        by.setdefault(context, []).append(found)
    of_pairs = [
        np.mean(
            [np.mean([np.mean([np.mean(x) for x in c]) for c in s.values()]) for s in p.values()]
        )
        for p in errors.values()
    ]
    return float(np.mean(of_pairs))


def some(seed: int, count: int = 120) -> list[Triphone]:
    """Triphones whose middle frames tell the phone more often than not."""
    rng = np.random.default_rng(seed)
    said = []
    for _ in range(count):
        context = ("ab"[rng.integers(2)], "cd"[rng.integers(2)])
        phone, speaker = "xyz"[rng.integers(3)], f"s{rng.integers(3)}"
        units_T = rng.integers(0, 3, rng.integers(2, 7))
        units_T[len(units_T) // 2] = "xyz".index(phone) + 3 * rng.integers(2)
        said.append(Triphone(context, phone, speaker, units_T))
    return said


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_definition(seed: int) -> None:
    said = some(seed)
    found = abx(said)
    assert found.within == pytest.approx(by_triples(said, across=False), abs=1e-12)
    assert found.across == pytest.approx(by_triples(said, across=True), abs=1e-12)
    assert found.num_triphones == len(said)


def test_many_pairs_are_warped_as_one_is() -> None:
    rng = np.random.default_rng(0)
    units = [rng.integers(0, 4, rng.integers(1, 9)) for _ in range(200)]
    found_P = warped(units[:100], units[100:])
    assert found_P.tolist() == [dtw(a, b) for a, b in zip(units[:100], units[100:], strict=True)]


def units_of(*units: int) -> npt.NDArray[np.int64]:
    return np.array(units)


def test_perfect_and_meaningless_units() -> None:
    def said(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> list[Triphone]:
        two = (("x", a), ("y", b))
        return [Triphone(("a", "b"), p, s, u) for s in "12" for p, u in two for _ in range(2)]

    assert abx(said(units_of(1, 2, 3), units_of(1, 4, 3)))[:2] == (0, 0)
    assert abx(said(units_of(1), units_of(1)))[:2] == (0.5, 0.5)


def test_what_cannot_be_compared_has_no_figure() -> None:
    one = Triphone(("a", "b"), "x", "s", units_of(1))
    assert abx([one, one._replace(phone="y")]) == (None, None, 2)
    assert abx([one, one._replace(context=("a", "c"), phone="y")]) == (None, None, 0)
    assert abx([t._replace(speaker="") for t in some(0)]) == (None, None, 0)
    assert abx([]) == (None, None, 0)


def test_no_more_of_a_kind_than_the_limit_are_compared() -> None:
    same = [Triphone(("a", "b"), p, "s", units_of(n)) for p in "xy" for n in range(MAX_TOKENS)]
    more = [Triphone(("a", "b"), "x", "s", units_of(99))] * 5
    assert abx([*same, *more]) == abx(same)
    speakers = [t._replace(speaker=f"{n}") for n in range(MAX_SPEAKERS + 1) for t in same[::10]]
    assert abx(speakers).num_triphones == len(speakers)
