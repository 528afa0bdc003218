"""What a rank computes: its share of each global batch, read ahead; and the validation windows.

Shape legend: B sequences, L1 = context length + 1 tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from jobs.lm.token_stream import TokenStream, open_tokens, stripe
from jobs.training.rank import RankConfig, RankInfo
from orchestrator.ledger.storage import Storage
from orchestrator.plan.token_order import Draw, TokenOrder

_MAX_VALID_WINDOWS = 256


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's share of a global batch, and what it is a share of."""

    draw: Draw
    """The whole global batch."""
    micro_batches: list[torch.Tensor]
    """``tokens_BL1`` of this rank, in pinned memory where there is an accelerator."""


class TokenBatches:
    """One rank's view of the packed tokens."""

    def __init__(self, config: RankConfig, rank_info: RankInfo, group: Any) -> None:
        self._config, self._rank_info, self._group = config, rank_info, group
        train_bin, valid_bin = self._fetch_tokens("train.bin", "valid.bin")
        context_length = config.train.context_length
        self._stream = TokenStream(open_tokens(train_bin), context_length=context_length)
        self.num_windows = self._stream.num_windows
        """Windows of the training split."""
        self.valid_BL1 = validation_windows(open_tokens(valid_bin), context_length)
        """All validation windows, the same on every rank."""

    def batches(self, count: int, *, cursor: int, skips: Set[int]) -> Iterator[Batch]:
        """The next global batches from a cursor on, each read while the one before is computed."""
        order = TokenOrder(self.num_windows, seed=self._config.seed, skips=skips)
        size = self._config.train.global_batch

        def read(cursor: int) -> Batch:
            draw = order.draw(cursor, size)
            return Batch(draw=draw, micro_batches=self._share(draw))

        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = reader.submit(read, cursor) if count else None
            for left in range(count, 0, -1):
                batch = ahead.result()
                ahead = reader.submit(read, batch.draw.cursor) if left > 1 else None
                yield batch

    def _share(self, draw: Draw) -> list[torch.Tensor]:
        """This rank's micro-batches."""
        rank_info = self._rank_info
        mine = stripe(draw.windows, rank=rank_info.rank, world_size=rank_info.world_size)
        tokens_BL1 = torch.from_numpy(self._stream.windows(mine))
        if self._config.device == "cuda":
            tokens_BL1 = tokens_BL1.pin_memory()
        return list(tokens_BL1.split(self._config.execution.micro_batch))

    def _fetch_tokens(self, *names: str) -> list[Path]:
        """Local token files; on each node the first rank brings them from a remote store."""
        pack, cache = Storage(self._config.pack_url), Path(self._config.scratch) / "tokens"
        if self._rank_info.local_rank == 0:
            for name in names:
                pack.fetch(name, cache)
        dist.barrier(group=self._group)
        return [(pack.local_root or cache) / name for name in names]


def validation_windows(tokens: np.ndarray, context_length: int) -> np.ndarray:
    """``tokens_BL1``: at most 256 windows, evenly spread; one shorter one in a short split."""
    if len(tokens) < 2:
        return np.zeros((0, 0), dtype=np.int64)
    length = min(context_length, len(tokens) - 1)
    num_windows = (len(tokens) - 1) // length
    chosen = np.unique(
        np.linspace(0, num_windows - 1, min(num_windows, _MAX_VALID_WINDOWS)).astype(np.int64)
    )
    return np.stack([tokens[n * length : (n + 1) * length + 1] for n in chosen]).astype(np.int64)
