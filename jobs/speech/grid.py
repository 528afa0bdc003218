"""How an encoder's frames lie on samples, and which waves it takes together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Grid(NamedTuple):
    """How frames lie on samples."""

    hop: int
    """Samples from one frame to the next."""
    field: int
    """Samples one frame is computed from."""

    def num_frames(self, num_samples: int) -> int:
        """Whole frames in a wave; 0 when it is shorter than one frame's field."""
        return max(0, (num_samples - self.field) // self.hop + 1)

    def num_samples(self, num_frames: int) -> int:
        """Samples that hold exactly ``num_frames``."""
        return (num_frames - 1) * self.hop + self.field

    def trimmed(self, num_samples: int) -> int:
        """Samples of the whole hops in a wave."""
        return num_samples // self.hop * self.hop


def grid_of(kernels: Sequence[int], strides: Sequence[int]) -> Grid:
    """The grid of a stack of unpadded convolutions."""
    hop, field = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    return Grid(hop, field)


def plan_batches(num_samples: Sequence[int], max_padded_samples: int) -> list[list[int]]:
    """Indices of utterances grouped into batches of similar length, longest first.

    A pure function of the lengths; one longer than ``max_padded_samples`` is a batch of its own.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(num_samples)), key=lambda i: (-num_samples[i], i)):
        longest = num_samples[batches[-1][0]] if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= max_padded_samples:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
