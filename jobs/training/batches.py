"""One rank's share of each global batch, read while the one before is computed.

Every rank follows the same order of samples; rank r of n takes samples r, r + n, ... of each global
batch, in micro-batches of equal size.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from jobs.training.rank import RankConfig, RankInfo
from jobs.training.task import MicroBatch, Samples, Task
from orchestrator.plan.token_order import Draw, TokenOrder


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's share of a global batch, and what it is a share of."""

    draw: Draw
    """The whole global batch."""
    micro_batches: list[MicroBatch]
    """This rank's samples, in pinned memory where there is an accelerator."""


def batches(
    task: Task, config: RankConfig, info: RankInfo, *, cursor: int, count: int, skips: Set[int]
) -> Iterator[Batch]:
    """The next ``count`` global batches from a cursor on."""
    settings = config.settings
    order = TokenOrder(task.num_samples, seed=settings.seed, skips=skips, mixture=settings.mixture)

    def read(cursor: int) -> Batch:
        draw = order.draw(cursor, settings.global_batch)
        own = stripe(draw.windows, rank=info.rank, world_size=info.world_size)
        return Batch(draw=draw, micro_batches=_read(task, config, own))

    with ThreadPoolExecutor(max_workers=1) as reader:
        following = [reader.submit(read, cursor)] if count else []
        for left in range(count, 0, -1):
            batch = following.pop().result()
            if left > 1:
                following.append(reader.submit(read, batch.draw.cursor))
            yield batch


def stripe(samples: Samples, *, rank: int, world_size: int) -> Samples:
    """The part of a global batch that one rank computes; all stripes are the batch, once each."""
    return samples[rank::world_size]


def _read(task: Task, config: RankConfig, own: Samples) -> list[MicroBatch]:
    size = config.execution.micro_batch
    micro_batches = [task.read(own[start : start + size]) for start in range(0, len(own), size)]
    if config.device != "cuda":
        return micro_batches
    return [tuple(tensor.pin_memory() for tensor in m) for m in micro_batches]
