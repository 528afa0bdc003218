"""ABX: is a sound nearer to another of its kind than to one that differs in a single phone?

In: triphones, each the units of its frames. A, B and X have the phones before and after in common;
A and X have the one between too. An error is d(A, X) > d(B, X), half of one where they are equal;
d is the mean over the cheapest path of dynamic time warping of the share of frames whose units
differ, which is all that a language model sees of units. Out: the mean error within speakers and
across (X is another speaker's), of contexts, then of speakers, then of pairs of phones, as
ZeroSpeech counts it (Schatz et al., Interspeech 2013; Libri-light, arXiv 1912.07875).

Shapes: N triphones, P pairs, I and J frames.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Units = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]

MAX_TOKENS = 10
"""Triphones of one speaker and one kind that are compared, as Libri-light's default has it."""
MAX_SPEAKERS = 5
"""Other speakers whose X are compared with A and B of one."""
_PAIRS_AT_ONCE = 1_024
_NO_WAY = np.int32(1 << 30)


class Triphone(NamedTuple):
    """A phone between two others, as somebody said it."""

    context: tuple[str, str]
    phone: str
    speaker: str
    units_T: Units
    """Of all three phones."""


class Abx(NamedTuple):
    """Error rates in [0, 1], chance being 0.5; None where nothing can be compared."""

    within: float | None
    across: float | None
    num_triphones: int
    """That were compared."""


Cell = dict[str, dict[str, list[int]]]
"""The triphones of one context: their positions by speaker and phone."""


def abx(triphones: Iterable[Triphone]) -> Abx:
    """The error rates of some triphones; of each kind and speaker the first `MAX_TOKENS` count."""
    within, across, num_triphones = _Means(), _Means(), 0
    for _, same in sorted(_by_context(triphones).items()):
        cell, units = _cell(same)
        if not any(len(by_phone) > 1 for by_phone in cell.values()):
            continue
        num_triphones += len(units)
        distances_NN = _distances(units)
        for speaker, by_phone in cell.items():
            others = [other for other in cell if other != speaker][:MAX_SPEAKERS]
            for a, b in permutations(by_phone, 2):
                own, foreign = by_phone[a], by_phone[b]
                if len(own) > 1:
                    within.add((a, b), speaker, _error(distances_NN, own, foreign, own))
                there = [cell[other][a] for other in others if a in cell[other]]
                if there:
                    errors = [_error(distances_NN, own, foreign, x) for x in there]
                    across.add((a, b), speaker, float(np.mean(errors)))
    return Abx(within.mean(), across.mean(), num_triphones)


def _by_context(triphones: Iterable[Triphone]) -> dict[tuple[str, str], list[Triphone]]:
    found: dict[tuple[str, str], list[Triphone]] = defaultdict(list)
    for triphone in triphones:
        if triphone.speaker and len(triphone.units_T):
            found[triphone.context].append(triphone)
    return found


def _cell(triphones: Iterable[Triphone]) -> tuple[Cell, list[Units]]:
    """Which triphones of a context are compared, and their units."""
    cell: Cell = defaultdict(lambda: defaultdict(list))
    units: list[Units] = []
    for triphone in triphones:
        same = cell[triphone.speaker][triphone.phone]
        if len(same) < MAX_TOKENS:
            same.append(len(units))
            units.append(triphone.units_T)
    return cell, units


def _error(distances_NN: Floats, own: list[int], foreign: list[int], x: list[int]) -> float:
    """Of A in ``own`` and B in ``foreign``, the mean of all triples in which A is not X."""
    to_a, to_b = distances_NN[np.ix_(x, own)], distances_NN[np.ix_(x, foreign)]
    wrong = np.sign(to_a[:, :, None] - to_b[:, None, :]) / 2 + 0.5
    return float(wrong[np.not_equal.outer(x, own)].mean())


class _Means:
    """A mean of contexts, then of speakers, then of pairs of phones."""

    def __init__(self) -> None:
        self._errors: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(
            lambda: defaultdict(list)
        )

    def add(self, pair: tuple[str, str], speaker: str, error: float) -> None:
        """Count the error of one context."""
        self._errors[pair][speaker].append(error)

    def mean(self) -> float | None:
        """None where nothing was counted."""
        if not self._errors:
            return None
        of_pairs = [np.mean([np.mean(e) for e in by.values()]) for by in self._errors.values()]
        return float(np.mean(of_pairs))


def _distances(units: Sequence[Units]) -> Floats:
    """Of each to each."""
    table_NN = np.zeros((len(units), len(units)))
    pairs = np.stack(np.triu_indices(len(units), 1), axis=1)
    for first in range(0, len(pairs), _PAIRS_AT_ONCE):
        ones, others = pairs[first : first + _PAIRS_AT_ONCE].T
        found_P = warped([units[n] for n in ones], [units[n] for n in others])
        table_NN[ones, others] = table_NN[others, ones] = found_P
    return table_NN


def warped(ones: Sequence[Units], others: Sequence[Units]) -> Floats:
    """The distance of each of P pairs: the cost of the cheapest path by the frames on it.

    Of paths that cost the same, the one that goes on in both where it can, else in the second.
    """
    ones_PI, others_PJ = _padded(ones, -1), _padded(others, -2)
    unlike_PIJ = ones_PI[:, :, None] != others_PJ[:, None, :]
    num_p, num_i, num_j = unlike_PIJ.shape
    # A row and a column before the first frames, from whose corner alone a path comes.
    cost_PIJ = np.full((num_p, num_i + 1, num_j + 1), _NO_WAY, np.int32)
    length_PIJ = np.zeros_like(cost_PIJ)
    cost_PIJ[:, 0, 0] = 0
    for diagonal in range(2, num_i + num_j + 1):
        i = np.arange(max(1, diagonal - num_j), min(diagonal - 1, num_i) + 1)
        j = diagonal - i
        before = ((i - 1, j - 1), (i, j - 1), (i - 1, j))
        costs = np.stack([cost_PIJ[:, k, m] for k, m in before])
        lengths = np.stack([length_PIJ[:, k, m] for k, m in before])
        chosen = costs.argmin(0)[None]
        cheapest = np.take_along_axis(costs, chosen, 0)[0]
        cost_PIJ[:, i, j] = cheapest + unlike_PIJ[:, i - 1, j - 1]
        length_PIJ[:, i, j] = np.take_along_axis(lengths, chosen, 0)[0] + 1
    ends = (np.arange(num_p), [len(u) for u in ones], [len(u) for u in others])
    distances_P: Floats = cost_PIJ[ends] / length_PIJ[ends]
    return distances_P


def _padded(units: Sequence[Units], filler: int) -> npt.NDArray[np.int64]:
    table = np.full((len(units), max(map(len, units))), filler, np.int64)
    for row, units_T in zip(table, units, strict=True):
        row[: len(units_T)] = units_T
    return table
