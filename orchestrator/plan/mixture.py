"""Which of several streams each position of an endless order belongs to, by the streams' weights.

Weights are whole numbers; the assignment repeats after as many positions as they add up to, and
any position's stream, and how often that stream came before, are a matter of arithmetic. At every
position each stream has come within one of its share: Tijdeman, "The chairman assignment problem",
Discrete Mathematics 32 (1980), whose rule `_assigned` follows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import PositiveInt

from orchestrator.spec.model import Spec

Ints = npt.NDArray[np.int64]


class Stream(Spec):
    """Windows that an order mixes with those of other streams."""

    name: str
    """The source that they are of."""
    num_windows: PositiveInt
    """How many there are."""
    weight: PositiveInt
    """Its share of the order is this part of the sum of all weights."""


class Pattern:
    """The streams of an endless order."""

    def __init__(self, weights: Sequence[int]) -> None:
        """``weights``: of each stream; best without a common divisor."""
        self._weights = np.array(weights, dtype=np.int64)
        self._streams = _assigned(weights)
        self._earlier = np.empty_like(self._streams)
        for stream, weight in enumerate(weights):
            self._earlier[self._streams == stream] = np.arange(weight)

    def at(self, positions: Ints) -> tuple[Ints, Ints]:
        """The stream at each position, and how many positions before it are that stream's."""
        rounds, places = np.divmod(positions, len(self._streams))
        streams = self._streams[places]
        return streams, rounds * self._weights[streams] + self._earlier[places]


def _assigned(weights: Sequence[int]) -> Ints:
    """The stream at each position of one round; each comes as often as its weight says.

    Of the streams whose share is at least ``1 / margin`` ahead of how often they came, that one
    comes whose share will be a whole one ahead, but for as much, the soonest.
    """
    weight_S = np.array(weights, dtype=np.int64)
    length, margin = int(weight_S.sum()), max(2 * len(weights) - 2, 1)
    streams = np.empty(length, dtype=np.int64)
    ahead_S = np.zeros(len(weights), dtype=np.int64)  # in parts of length * margin
    for position in range(length):
        ahead_S += margin * weight_S
        left_S = ((margin - 1) * length - ahead_S) / weight_S
        left_S[ahead_S < length] = np.inf
        streams[position] = stream = int(left_S.argmin())
        ahead_S[stream] -= margin * length
    return streams
