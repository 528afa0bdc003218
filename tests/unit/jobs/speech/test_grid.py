"""Frames on samples, and which waves are taken together."""

from __future__ import annotations

import pytest

from jobs.speech.grid import grid_of, plan_batches

KERNELS_50HZ, STRIDES_50HZ = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
KERNELS_25HZ, STRIDES_25HZ = (*KERNELS_50HZ, 2), (*STRIDES_50HZ, 2)


def test_batches_hold_similar_lengths_within_the_limit() -> None:
    assert plan_batches([10, 40, 20, 40, 100, 11], max_padded_samples=80) == [
        [4],
        [1, 3],
        [2, 5, 0],
    ]


def test_batches_of_nothing() -> None:
    assert plan_batches([], 80) == []


@pytest.mark.parametrize(
    ("kernels", "strides", "field", "hop"),
    [(KERNELS_50HZ, STRIDES_50HZ, 400, 320), (KERNELS_25HZ, STRIDES_25HZ, 720, 640)],
)
def test_receptive_field_and_hop(
    kernels: tuple[int, ...], strides: tuple[int, ...], field: int, hop: int
) -> None:
    grid = grid_of(kernels, strides)
    assert grid == (hop, field)
    frames = [grid.num_frames(n) for n in (0, 1, field - 1, field, field + hop)]
    assert frames == [0, 0, 0, 1, 2]
    assert [grid.num_samples(1), grid.num_samples(2)] == [field, field + hop]
    assert grid.trimmed(2 * hop + 7) == 2 * hop
