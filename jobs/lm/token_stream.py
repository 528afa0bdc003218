"""The windows of a packed token file: which tokens are in each.

In: one long stream of tokens. Out: the tokens of any windows, whatever the number of ranks.

Window w holds the ``L + 1`` tokens from ``w * L`` on; its first L are the input, its last L the
targets. Windows overlap by one token, so that each token but the first of the stream is a target
exactly once per epoch; the fewer than L tokens after the last whole window are never used. In which
order training uses them is ``orchestrator.plan.token_order``'s.

Shape legend: B sequences, L tokens of context, L1 = L + 1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from orchestrator.errors import RequestError

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


class TokenStream:
    """The windows of one token file."""

    def __init__(self, tokens: Tokens, *, context_length: int) -> None:
        self._tokens = tokens
        self._context_length = context_length
        self.num_windows = max(len(tokens) - 1, 0) // context_length
        if not self.num_windows:
            raise RequestError(
                f"train.context_length: the training split has {len(tokens)} tokens, "
                f"fewer than the {context_length + 1} of one window; add data or shorten it"
            )

    def windows(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """``tokens_BL1`` (int64) of the given window numbers."""
        starts = numbers * self._context_length
        length = self._context_length + 1
        return np.stack([self._tokens[start : start + length] for start in starts]).astype(np.int64)
