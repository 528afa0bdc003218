"""Each rank's share of global batches that are the same for any number of ranks."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.training.batches import Batch, batches, stripe
from jobs.training.rank import RankInfo
from tests.unit.jobs.training.countdown import Countdown, rank_config


def share(tmp_path: Path, rank: int, world_size: int, **options: object) -> list[Batch]:
    info = RankInfo(rank=rank, world_size=world_size, local_rank=rank, local_world_size=world_size)
    config = rank_config(tmp_path, global_batch=8, micro_batch=2)
    given = {"cursor": 0, "count": 5, "skips": frozenset[int](), **options}
    return list(batches(Countdown(config), config, info, **given))


def numbers(*shares: Batch) -> list[float]:
    """All samples in these shares, sorted."""
    return sorted(n for s in shares for (numbers_B,) in s.micro_batches for n in numbers_B.tolist())


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_stripes_are_the_batch(world_size: int) -> None:
    numbers = np.arange(5, 17)
    stripes = [stripe(numbers, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(stripes)) == numbers.tolist()
    assert {len(s) for s in stripes} == {12 // world_size}


def test_any_number_of_ranks_sees_the_same_global_batches(tmp_path: Path) -> None:
    alone = share(tmp_path, 0, 1)
    both = [share(tmp_path, rank, 2) for rank in (0, 1)]
    for whole, first, second in zip(alone, *both, strict=True):
        assert whole.draw.windows.tolist() == first.draw.windows.tolist()
        assert [len(numbers_B) for (numbers_B,) in whole.micro_batches] == [2] * 4
        assert numbers(first, second) == numbers(whole)


def test_a_resumed_rank_goes_on_at_the_cursor(tmp_path: Path) -> None:
    whole = share(tmp_path, 0, 1)
    rest = share(tmp_path, 0, 1, cursor=whole[1].draw.cursor, count=3)
    assert [b.draw.windows.tolist() for b in rest] == [b.draw.windows.tolist() for b in whole[2:]]


def test_skipped_positions_are_passed_over(tmp_path: Path) -> None:
    (first,) = share(tmp_path, 0, 1, count=1, skips=frozenset({1, 2}))
    assert first.draw.positions.tolist() == [0, 3, 4, 5, 6, 7, 8, 9]


def test_nothing_is_read_when_nothing_is_left(tmp_path: Path) -> None:
    assert share(tmp_path, 0, 1, count=0) == []


def test_a_batch_is_read_while_the_one_before_is_used(tmp_path: Path) -> None:
    config = rank_config(tmp_path, global_batch=8, micro_batch=8)
    read: list[threading.Event] = [threading.Event() for _ in range(3)]

    class Watched(Countdown):
        def read(self, samples: np.ndarray) -> tuple[torch.Tensor, ...]:
            next(event for event in read if not event.is_set()).set()
            return super().read(samples)

    info = RankInfo(rank=0, world_size=1, local_rank=0, local_world_size=1)
    ahead = batches(Watched(config), config, info, cursor=0, count=3, skips=frozenset())
    next(ahead)
    assert read[1].wait(10), "the second was not read ahead"
    assert not read[2].is_set()
    ahead.close()
