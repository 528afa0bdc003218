"""Runs a function on batches of few shapes as recorded CUDA graphs: launches cost nothing then.

A batch of waves becomes one of a bucket: rows of at most an eighth more frames, as many as a batch
of such waves can have. Each bucket's first batch is computed as usual, recorded, and replayed; only
where the replay gives the same does it serve from then on.

Shapes: B waves or rows, S samples, T frames, D features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jobs.speech.grid import Grid

Function = Callable[[Tensor, Tensor], Tensor]
"""Of ``wav_BS`` and ``lengths_B``, which tells nothing to the host."""
Record = Callable[[Function, Tensor, Tensor], Callable[[], Tensor]]
"""Records a function over two tensors; what it gives computes it on what they hold by then."""

log = logging.getLogger(__name__)
_STEPS_OF_A_DOUBLING = 8
_LEAST_STEP_HOPS = 8
_LEAST_FILLED = 0.5
"""Of a bucket: below that, a batch is better computed as it is."""
_WARM_UPS = 2
_SAME = 0.01
"""Of the largest feature: rounding of 16 bits, where a recording may take another kernel."""


class Bucket(NamedTuple):
    """The shape of a batch."""

    num_rows: int
    num_samples: int


def bucket_of(num_samples: Sequence[int], grid: Grid, max_padded_samples: int) -> Bucket | None:
    """The bucket of a batch of waves; None where it would leave too much of it empty."""
    longest_hops = -(-max(num_samples) // grid.hop)
    step = max(_LEAST_STEP_HOPS, (1 << (longest_hops.bit_length() - 1)) // _STEPS_OF_A_DOUBLING)
    num_hops = -(-longest_hops // step) * step
    shortest = (num_hops - step) * grid.hop + 1
    bucket = Bucket(max(1, max_padded_samples // shortest), num_hops * grid.hop)
    fits = len(num_samples) <= bucket.num_rows
    is_filled = sum(num_samples) >= _LEAST_FILLED * bucket.num_rows * bucket.num_samples
    return bucket if fits and is_filled else None


class Replays:
    """A function's recordings, by bucket."""

    def __init__(self, function: Function, record: Record | None = None) -> None:
        """``record``: by default, as a CUDA graph."""
        self._function, self._record = function, record or Recorder()
        self._recorded: dict[Bucket, _Recorded | None] = {}

    def __call__(self, wav_BS: Tensor, lengths_B: Tensor) -> Tensor:
        """What the function gives; good until the next call."""
        bucket = Bucket(*wav_BS.shape)
        if bucket not in self._recorded:
            self._recorded[bucket] = self._first(wav_BS, lengths_B)
        recorded = self._recorded[bucket]
        return recorded(wav_BS, lengths_B) if recorded else self._function(wav_BS, lengths_B)

    def forget(self) -> bool:
        """Give back the memory of all recordings; whether there were any."""
        had_some = bool(self._recorded)
        self._recorded.clear()
        return had_some

    def _first(self, wav_BS: Tensor, lengths_B: Tensor) -> _Recorded | None:
        expected = self._function(wav_BS, lengths_B)
        try:
            recorded = _Recorded(self._function, self._record, wav_BS, lengths_B)
            found = recorded(wav_BS, lengths_B)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            log.warning("batches of %s cannot be recorded: %s", tuple(wav_BS.shape), error)
            return None
        most = _SAME * float(expected.nan_to_num().abs().max())
        if torch.allclose(found, expected, rtol=0, atol=most, equal_nan=True):
            return recorded
        log.warning("batches of %s: a replay differs; computed as usual", tuple(wav_BS.shape))
        return None


class _Recorded:
    """One bucket's recording and the tensors that it reads."""

    def __init__(
        self, function: Function, record: Record, wav_BS: Tensor, lengths_B: Tensor
    ) -> None:
        self._wav_BS, self._lengths_B = wav_BS.clone(), lengths_B.clone()
        self._replay = record(function, self._wav_BS, self._lengths_B)

    def __call__(self, wav_BS: Tensor, lengths_B: Tensor) -> Tensor:
        self._wav_BS.copy_(wav_BS)
        self._lengths_B.copy_(lengths_B)
        return self._replay()


class Recorder:
    """Records CUDA graphs, all in one pool of memory: one at a time is replayed."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(
        self, function: Function, wav_BS: Tensor, lengths_B: Tensor
    ) -> Callable[[], Tensor]:
        """See `Record`."""
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        here = torch.cuda.current_stream()
        beside.wait_stream(here)
        with torch.cuda.stream(beside):  # libraries set themselves up, which no graph may hold
            for _ in range(_WARM_UPS):
                function(wav_BS, lengths_B)
        here.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            out = function(wav_BS, lengths_B)

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay
