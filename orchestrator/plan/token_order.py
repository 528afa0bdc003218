"""The order in which training uses its windows: a pure function of (seed, cursor, skip list).

A window is a number of the packed stream's windows (``jobs.lm.token_stream`` says which tokens are
in it). An epoch is a permutation of all windows, drawn by Philox from (seed, epoch); the endless
order is one epoch after the other. A *position* is a place in that order. The cursor is the first
position that is not used yet, so a global batch may run across the border of two epochs. Positions
on the skip list are passed over: they are those of batches whose loss was not finite.

Windows may lie in several streams, mixed by weights: each position belongs to a stream
(``orchestrator.plan.mixture``), and each stream has epochs and permutations of its own. An order
without a mixture has one stream.

Ranks follow this order and `orchestrator verify` replays it, so it lies where both can import it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from orchestrator.plan.mixture import Ints, Pattern, Stream

HASH_START = "0" * 64
"""The running hash before the first step."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One global batch."""

    positions: Ints
    """Places in the endless order, ascending."""
    windows: Ints
    """The window at each of them."""
    cursor: int
    """First position that is not used yet, after this batch."""


class TokenOrder:
    """The endless order of ``num_windows`` windows."""

    def __init__(
        self,
        num_windows: int,
        *,
        seed: int,
        skips: Set[int] = frozenset(),
        mixture: Sequence[Stream] = (),
    ) -> None:
        """``mixture``: the streams that the windows lie in, one after the other."""
        self.num_windows = num_windows
        self._skips = skips
        self.sizes = [stream.num_windows for stream in mixture] or [num_windows]
        if sum(self.sizes) != num_windows:
            raise ValueError(f"streams of {self.sizes} windows are not {num_windows} together")
        self._firsts = np.cumsum([0, *self.sizes[:-1]])
        self._pattern = Pattern([stream.weight for stream in mixture] or [1])
        # Two of a stream are in use while a batch runs across epochs; 10 M windows are 80 MB.
        self._epoch = lru_cache(maxsize=2 * len(self.sizes))(
            lambda stream, epoch: epoch_order(
                self.sizes[stream], seed=seed, epoch=epoch, stream=stream
            )
        )

    def draw(self, cursor: int, count: int) -> Draw:
        """The ``count`` windows at ``cursor`` and after it that are not skipped."""
        positions, end = np.arange(cursor, cursor + count), cursor + count
        while self._skips and len(positions := self._kept(cursor, end)) < count:
            end += count - len(positions)
        return Draw(positions=positions, windows=self.windows_at(positions), cursor=end)

    def windows_at(self, positions: Ints) -> Ints:
        """The windows at some positions."""
        streams, uses = self._pattern.at(positions)
        epochs, places = np.divmod(uses, np.array(self.sizes)[streams])
        windows = np.empty(len(positions), dtype=np.int64)
        for stream, epoch in np.unique(np.stack([streams, epochs]), axis=1).T.tolist():
            own = (streams == stream) & (epochs == epoch)
            windows[own] = self._firsts[stream] + self._epoch(stream, epoch)[places[own]]
        return windows

    def batches(self, steps: int, batch: int) -> Iterator[Draw]:
        """The global batches of steps 1 to ``steps``."""
        cursor = 0
        for _ in range(steps):
            draw = self.draw(cursor, batch)
            cursor = draw.cursor
            yield draw

    def _kept(self, start: int, end: int) -> Ints:
        return np.array([p for p in range(start, end) if p not in self._skips], dtype=np.int64)


def epoch_order(num_windows: int, *, seed: int, epoch: int, stream: int = 0) -> Ints:
    """The permutation of all windows of a stream in one epoch."""
    # The counter's last word: no other stream comes to draw the same numbers.
    philox = np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, stream])
    return np.random.Generator(philox).permutation(num_windows)


def chain_hash(previous: str, windows: Ints) -> str:
    """The running hash after one more global batch: sha256(previous + windows as int64 LE), in hex.

    A chain rather than one long hash, because hashlib cannot save its state into a checkpoint.
    """
    return hashlib.sha256(bytes.fromhex(previous) + windows.astype("<i8").tobytes()).hexdigest()
