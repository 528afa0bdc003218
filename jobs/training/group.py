"""One rank among all of them: what ranks tell each other, and the files that a node's ranks share.

Every method is collective: all ranks call it, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jobs.training.rank import RankInfo
from orchestrator.ledger.storage import Storage


class RankGroup:
    """All ranks of a training, as one of them sees them."""

    def __init__(self, info: RankInfo, handle: Any) -> None:
        self.info = info
        self.tick: Callable[[str], None] = lambda _phase: None
        """Tells the heartbeat that work was done, while other ranks may wait for this one."""
        self._handle = handle

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which writes what is written once."""
        return self.info.rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here."""
        dist.barrier(group=self._handle)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks."""
        values: list[Any] = [None] * self.info.world_size
        dist.all_gather_object(values, value, group=self._handle)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value."""
        message = [value]
        dist.broadcast_object_list(message, src=0, group=self._handle)
        return message[0]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, in place; on the CPU."""
        dist.all_reduce(tensor, group=self._handle)
        return tensor

    def fetch(self, source: Storage, names: Sequence[str], into: Path) -> list[Path]:
        """Local paths of some files; on each node the first rank brings them from a remote store.

        Raises FileNotFoundError, CorruptError, OSError.
        """
        if self.info.local_rank == 0:
            for name in names:
                source.fetch(name, into)
        self.barrier()
        return [(source.local_root or into) / name for name in names]
