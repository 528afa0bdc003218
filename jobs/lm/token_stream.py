"""The windows of a packed token file: which tokens are in each.

In: one long stream of tokens. Out: the tokens of any windows, whatever the number of ranks.

Window w holds the ``L + 1`` tokens from ``w * L`` on; its first L are the input, its last L the
targets. Windows overlap by one token, so that each token but the first of the stream is a target
exactly once per epoch; the fewer than L tokens after the last whole window are never used. Where
sources are mixed, the tokens are several streams, one after the other, and no window is of two. In
which order training uses them is ``orchestrator.plan.token_order``'s.

Shape legend: B sequences, L tokens of context, L1 = L + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from orchestrator.errors import CorruptError, RequestError

Tokens = npt.NDArray[np.uint16]


def bin_name(split: str) -> str:
    """The token file of a split."""
    return f"{split}.bin"


def index_name(split: str) -> str:
    """The index of a split's utterances: id, offset, num_tokens, num_samples."""
    return f"{split}.idx.parquet"


def open_tokens(path: Path) -> Tokens:
    """The tokens of a ``.bin`` file, mapped into memory rather than read."""
    if not path.stat().st_size:
        return np.zeros(0, dtype="<u2")  # an empty file cannot be mapped
    return np.memmap(path, dtype="<u2", mode="r")


def num_windows(num_tokens: int, context_length: int) -> int:
    """Windows of a stream of so many tokens."""
    return max(num_tokens - 1, 0) // context_length


class TokenStream:
    """The windows of one token file."""

    def __init__(
        self, tokens: Tokens, *, context_length: int, stream_tokens: Sequence[int] = ()
    ) -> None:
        """``stream_tokens``: how many tokens each stream has; the file is one when empty."""
        self._tokens = tokens
        self._context_length = context_length
        sizes = list(stream_tokens) or [len(tokens)]
        if sum(sizes) != len(tokens):
            raise CorruptError(
                f"the packed streams have {sum(sizes)} tokens by pack's facts, and {len(tokens)} "
                "in train.bin; pack again"
            )
        counts = [num_windows(size, context_length) for size in sizes]
        self._first_tokens, self._first_windows = (
            np.cumsum([0, *before[:-1]], dtype=np.int64) for before in (sizes, counts)
        )
        self.num_windows = sum(counts)
        if not all(counts):
            fewest = min(sizes)
            raise RequestError(
                f"train.context_length: the training split has {fewest} tokens, "
                f"fewer than the {context_length + 1} of one window; add data or shorten it"
            )

    def windows(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """``tokens_BL1`` (int64) of the given window numbers."""
        streams = np.searchsorted(self._first_windows, numbers, side="right") - 1
        in_stream = numbers - self._first_windows[streams]
        starts = self._first_tokens[streams] + in_stream * self._context_length
        length = self._context_length + 1
        return np.stack([self._tokens[start : start + length] for start in starts]).astype(np.int64)
