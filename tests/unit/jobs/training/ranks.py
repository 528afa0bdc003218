# ruff: noqa: ARG002 (an engine need not use all it is given)
"""Ranks as threads of a test, and an engine of plain PyTorch: no processes, no DeepSpeed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from jobs.training.rank import RankConfig, RankInfo
from orchestrator.ledger.storage import Storage

TIMEOUT_S = 20.0


class Threads:
    """A RankGroup for each of some threads; who waits in vain for another gets an error."""

    def __init__(self, world_size: int) -> None:
        self._barrier = threading.Barrier(world_size, timeout=TIMEOUT_S)
        self._values: list[Any] = [None] * world_size
        self.members = [Member(self, rank, world_size) for rank in range(world_size)]

    def gather(self, rank: int, value: Any) -> list[Any]:
        self._values[rank] = value
        self._barrier.wait()
        values = list(self._values)
        self._barrier.wait()
        return values

    def run(self, work: Callable[[Member], Any]) -> list[Any]:
        """What the ranks return, or the exceptions they raise."""
        with ThreadPoolExecutor(len(self.members)) as threads:
            ends = [threads.submit(work, member) for member in self.members]
        return [end.exception() or end.result() for end in ends]


class Member:
    """One rank, as `jobs.training.group.RankGroup`."""

    def __init__(self, threads: Threads, rank: int, world_size: int) -> None:
        self._threads = threads
        self.info = RankInfo(
            rank=rank, world_size=world_size, local_rank=rank, local_world_size=world_size
        )
        self.leads = rank == 0

    def barrier(self) -> None:
        self.gather(None)

    def gather(self, value: Any) -> list[Any]:
        return self._threads.gather(self.info.rank, value)

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.copy_(torch.stack(self.gather(tensor.clone())).sum(0))

    def fetch(self, source: Storage, names: Sequence[str], into: Path) -> list[Path]:
        return [source.fetch(name, into) for name in names]


class PlainEngine:
    """One rank's whole model, under stochastic gradient descent."""

    def __init__(self, task: Any, config: RankConfig, rank_info: RankInfo) -> None:
        self._task, self._rank_info = task, rank_info
        self.model = task.build_model()
        self.facts, self.flops_per_sample = task.facts(self.model), 0.0
        self.lr = 0.0

    def set_lr(self, lr: float) -> None:
        self.lr = lr

    def loss(self, micro_batch: Any) -> torch.Tensor:
        return self._task.loss(self.model, micro_batch)

    def accumulate(self, micro_batch: Any, *, last: bool, poisoned: bool = False) -> torch.Tensor:
        loss = self.loss(micro_batch) * (float("nan") if poisoned else 1.0)
        loss.backward()
        return loss.detach().double()

    def step(self) -> float:
        (weight,) = self.model.parameters()
        norm = float(weight.grad.norm())
        with torch.no_grad():
            weight -= 1e-3 * self.lr * weight.grad.nan_to_num()
        weight.grad = None
        return norm

    def save(self, folder: Path, name: str) -> None:
        torch.save(self.model.state_dict(), folder / name / f"{self._rank_info.rank}.pt")

    def load(self, folder: Path, name: str) -> None:
        path = folder / name / f"{self._rank_info.rank}.pt"
        self.model.load_state_dict(torch.load(path, weights_only=True))

    def state_dict(self) -> dict[str, torch.Tensor]:
        return dict(self.model.state_dict())


def build_plain(
    task: Any, config: RankConfig, rank_info: RankInfo, *, universal: bool
) -> PlainEngine:
    assert not universal
    return PlainEngine(task, config, rank_info)
