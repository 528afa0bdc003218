"""How likely a causal language model finds sequences of tokens, in batches that these alone decide.

The rule, the same for every model: each sequence alone; its first token is context and never
scored, all others are. What begins with a BOS has all its units scored, what begins with a unit all
but that one. A sequence longer than the model's context is read in windows of that length that
advance by half of it, each token scored once with the longest context available. Probabilities are
over the model's whole vocabulary.

Windows of like length share a batch, padded on the right. That needs no mask: no earlier position
of a causal model sees what comes later, and positions count from the left, so that OPT's learned
ones, rotary ones and BLOOM's ALiBi are those of the sequence alone.

Shape legend: B windows, L tokens (padded), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from orchestrator.quantities import SAMPLE_RATE_HZ

Tokens = npt.NDArray[Any]
_BATCH_TOKENS = 4_096


class Window(NamedTuple):
    """A stretch of a sequence that the model reads at once."""

    sequence: int
    start: int
    end: int
    first: int
    """The first token of the sequence that is scored in it; all after it are."""

    @property
    def length(self) -> int:
        """Tokens, the last of which is only predicted."""
        return self.end - self.start


class Piece(NamedTuple):
    """The tokens of a window, for whoever has not got the sequence."""

    tokens_L: Tokens
    first: int
    """Where in it the tokens begin that are scored."""


class Likelihood(NamedTuple):
    """Of one sequence."""

    log_prob: float
    """Sum over the tokens that are scored, natural logarithm."""
    num_scored: int
    num_samples: int
    """Audio behind it, at 16 kHz; 0 where that is not known."""

    @property
    def per_token(self) -> float:
        """Mean over the tokens that are scored; NaN where there are none."""
        return self.log_prob / self.num_scored if self.num_scored else math.nan

    @property
    def per_s(self) -> float:
        """Nats a second of audio; NaN where there is none."""
        return self.log_prob * SAMPLE_RATE_HZ / self.num_samples if self.num_samples else math.nan


def windows_of(num_tokens: int, context_length: int | None) -> Iterator[tuple[int, int, int]]:
    """(start, end, first scored token) of each window of a sequence; each token once.

    ``context_length``: most tokens that the model reads at once; None for no limit.
    """
    longest = num_tokens if context_length is None else context_length
    start, scored = 0, 1
    while scored < num_tokens:
        end = min(start + longest + 1, num_tokens)
        yield start, end, scored
        start, scored = end - 1 - longest // 2, end


def plan_batches(lengths: Sequence[int], context_length: int | None) -> list[list[Window]]:
    """The windows of all sequences, in batches: a pure function of their lengths."""
    windows = (
        Window(n, *window)
        for n, length in enumerate(lengths)
        for window in windows_of(length, context_length)
    )
    return list(_batches(sorted(windows, key=lambda w: (w.length, w.sequence, w.start))))


def _batches(windows: Iterable[Window]) -> Iterator[list[Window]]:
    """Windows of like length together, so that little is padded."""
    batch: list[Window] = []
    for window in windows:
        if batch and (len(batch) + 1) * window.length > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def pieces_of(sequences: Sequence[Tokens], batch: Iterable[Window]) -> list[Piece]:
    """What the windows of a batch hold."""
    return [Piece(sequences[w.sequence][w.start : w.end], w.first - w.start) for w in batch]


@torch.inference_mode()
def log_probs(model: Any, pieces: Sequence[Piece]) -> list[float]:
    """The log-probability of what is scored of each piece of one batch, in nats."""
    longest = max(len(piece.tokens_L) for piece in pieces)
    tokens_BL = torch.zeros(len(pieces), longest, dtype=torch.long)
    scored_BL = torch.zeros(len(pieces), longest, dtype=torch.bool)
    for row, (tokens_L, first) in enumerate(pieces):
        tokens_BL[row, : len(tokens_L)] = torch.from_numpy(tokens_L.astype(np.int64))
        scored_BL[row, first : len(tokens_L)] = True
    logits_BLV = (
        model(input_ids=tokens_BL[:, :-1].to(model.device), use_cache=False).logits.float().cpu()
    )
    nll_BL = functional.cross_entropy(
        logits_BLV.transpose(1, 2), tokens_BL[:, 1:], reduction="none"
    )
    return (-(nll_BL.double() * scored_BL[:, 1:]).sum(1)).tolist()


def summed(
    num_sequences: int, scored: Mapping[int, Sequence[float]], batches: Sequence[Sequence[Window]]
) -> npt.NDArray[np.float64]:
    """Log-probability of each sequence, from those of the batches by number.

    Windows are added in the order of batches, whichever was finished first.
    """
    total = np.zeros(num_sequences)
    for number, batch in enumerate(batches):
        for window, value in zip(batch, scored[number], strict=True):
            total[window.sequence] += value
    return total
