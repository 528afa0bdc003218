"""Which tokens each optimizer step sees: a pure function of (tokens, context length, seed, cursor).

In: one long stream of tokens. Out: the sample ids and the tokens of any global batch, whatever the
number of ranks.

Window w holds the ``L + 1`` tokens from ``w * L`` on; its first L are the input, its last L the
targets. Windows overlap by one token, so that each token but the first of the stream is a target
exactly once per epoch; the fewer than L tokens after the last whole window are never used. An epoch
is a permutation of all windows, drawn by Philox from (seed, epoch). The cursor counts windows since
the start of training, so a global batch may run across the border of two epochs.

Shape legend: B sequences, L tokens of context, L1 = L + 1.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from orchestrator.errors import RequestError

HASH_START = "0" * 64
"""The running hash before the first step."""


def open_tokens(path: Path) -> np.ndarray:
    """The tokens of a ``.bin`` file, mapped into memory rather than read."""
    if not path.stat().st_size:
        return np.zeros(0, dtype="<u2")  # an empty file cannot be mapped
    return np.memmap(path, dtype="<u2", mode="r")


class TokenStream:
    """The windows of one token file in training order."""

    def __init__(self, tokens: np.ndarray, *, context_length: int, seed: int) -> None:
        self._tokens = tokens
        self._context_length = context_length
        self.num_windows = max(len(tokens) - 1, 0) // context_length
        if not self.num_windows:
            raise RequestError(
                f"train.context_length: the training split has {len(tokens)} tokens, "
                f"fewer than the {context_length + 1} of one window; add data or shorten it"
            )
        # Two are in use while a batch runs across epochs; one of 10 M windows is 80 MB.
        self._order = lru_cache(maxsize=2)(
            lambda epoch: epoch_order(self.num_windows, seed=seed, epoch=epoch)
        )

    def sample_ids(self, cursor: int, count: int) -> np.ndarray:
        """The window numbers at ``cursor .. cursor + count`` of the endless training order."""
        epochs, places = np.divmod(np.arange(cursor, cursor + count), self.num_windows)
        ids = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epochs):
            ids[epochs == epoch] = self._order(int(epoch))[places[epochs == epoch]]
        return ids

    def windows(self, ids: np.ndarray) -> np.ndarray:
        """``tokens_BL1`` (int64) of the given window numbers."""
        starts = ids * self._context_length
        length = self._context_length + 1
        return np.stack([self._tokens[start : start + length] for start in starts]).astype(np.int64)


def epoch_order(num_windows: int, *, seed: int, epoch: int) -> np.ndarray:
    """The permutation of all windows in one epoch."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_windows)


def stripe(ids: np.ndarray, *, rank: int, world_size: int) -> np.ndarray:
    """The part of a global batch that one rank computes; all stripes are the batch, once each."""
    return ids[rank::world_size]


def chain_hash(previous: str, ids: np.ndarray) -> str:
    """The running hash after one more global batch: sha256(previous + ids as int64 LE), in hex.

    A chain rather than one long hash, because hashlib cannot save its state into a checkpoint.
    """
    return hashlib.sha256(bytes.fromhex(previous) + ids.astype("<i8").tobytes()).hexdigest()
