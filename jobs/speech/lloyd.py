"""k-means over blocks of frames: k-means++ (Arthur and Vassilvitskii 2007), then Lloyd iterations.

In: frames in blocks, which may lie in the memory of other processes. Out: ``centroids_KD`` in fp32,
the same bytes wherever the blocks lie: each block gives float64 sums, which are added in the order
of blocks.

Shapes: N frames, D features, K clusters, M subsampled frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orchestrator.errors import DataError

Answer = TypeVar("Answer")
Question = Callable[[Tensor, int, torch.device], Answer]
"""Of a block: its ``feats_ND``, its number, and the device to compute on."""
Floats64 = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

MAX_ITERATIONS = 50
TOLERANCE = 1e-4
"""Relative change of inertia below which the fit ends."""
INIT_FRAMES_PER_CLUSTER = 100
"""Frames that k-means++ chooses from, per cluster."""
MIN_FRAMES_PER_CLUSTER = 2
FEATURE_ROUNDING = 1e-5
"""Of features, what fp32 does to them, by device, threads and batch. A unit is a tie when the two
smallest squared distances differ by less than that share of frame times longest centroid, both from
the centroids' mean."""
_FP32_OF_SCORES = 4e-6
"""The same of the products that distances are made of (sqrt(D) roundings of 6e-8, D up to 1280)."""
_CHUNK_FRAMES = {"cpu": 1_024, "cuda": 65_536}
"""Frames taken at a time, by the kind of device: on a CPU what its caches hold."""
_PRODUCT_FRAMES = 16_384
_NO_NUMBERS = (
    "encoder: its features hold NaN or infinity; encode in fp32, and see that its weights and the "
    "recordings are whole"
)
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class BlockSums:
    """What one block adds to one iteration."""

    sums: Floats64
    """KxD: of each cluster's frames."""
    counts: Integers
    """K: frames of each cluster."""
    inertia: float
    """Sum of squared distances."""

    def __add__(self, other: BlockSums) -> BlockSums:
        return BlockSums(
            sums=self.sums + other.sums,
            counts=self.counts + other.counts,
            inertia=self.inertia + other.inertia,
        )


class Blocks(Protocol):
    """Frames in blocks, wherever they lie."""

    def __len__(self) -> int:
        """Number of blocks."""

    def ask(self, question: Question[Answer]) -> Iterable[Answer]:
        """The answer of each block, in the order of blocks."""


class BlocksInMemory:
    """Blocks that this process holds, on the CPU."""

    def __init__(self, blocks: Sequence[Tensor]) -> None:
        self._blocks = blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def ask(self, question: Question[Answer]) -> Iterable[Answer]:
        """See `Blocks`."""
        return (question(feats_ND, n, _CPU) for n, feats_ND in enumerate(self._blocks))


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted codebook."""

    centroids: Tensor
    """KxD, fp32."""
    inertia: float
    """Sum over frames of the squared distance to the nearest centroid."""
    iterations: int
    """Lloyd iterations until the end."""
    num_frames: int


class Nearest(NamedTuple):
    """What `nearest` finds of each of N frames."""

    index_N: Tensor
    """The nearest centroid; the first of equals."""
    distance_N: Tensor
    """Its squared distance, fp32."""
    is_tie_N: Tensor
    """Whether what rounding does to features could have made another the nearest."""


def nearest(feats_ND: Tensor, centroids_KD: Tensor) -> Nearest:
    """The nearest centroid of each frame, exact for the features as they are given.

    What frames and centroids have in common is subtracted first, as a distance is a small
    difference of large products otherwise; where fp32 cannot tell the first from the second all the
    same, float64 does.
    """
    centroids = _Centroids.of(centroids_KD)
    chunks = [centroids.nearest(chunk_ND) for chunk_ND in _chunks(feats_ND)]
    return Nearest(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


class _Centroids(NamedTuple):
    """What finding the nearest takes of centroids alone."""

    given_KD: Tensor
    mean_D: Tensor
    near_KD: Tensor
    """The given less their mean."""
    norms_K: Tensor
    """Squared, of these."""

    @classmethod
    def of(cls, centroids_KD: Tensor) -> _Centroids:
        mean_D = centroids_KD.mean(0)
        near_KD = centroids_KD - mean_D
        return cls(centroids_KD, mean_D, near_KD, near_KD.square().sum(1))

    def nearest(self, feats_ND: Tensor) -> Nearest:
        near_ND = feats_ND - self.mean_D
        scores_NK = torch.addmm(self.norms_K, near_ND, self.near_KD.T, alpha=-2)
        first_N, index_N = scores_NK.min(1)
        scores_NK.scatter_(1, index_N[:, None], torch.inf)
        margin_N = scores_NK.amin(1) - first_N
        longest = self.norms_K.max().sqrt()
        reach_N = near_ND.norm(dim=1) * longest
        rounding_N = _FP32_OF_SCORES * (reach_N + longest.square())
        close = (margin_N <= rounding_N).nonzero()[:, 0]
        if len(close):
            index_N[close] = _nearest_in_float64(feats_ND[close], self.given_KD)
        distance_N = near_ND.sub_(self.near_KD[index_N]).square_().sum(1)
        return Nearest(index_N, distance_N, margin_N <= FEATURE_ROUNDING * reach_N)


def _chunks(feats_ND: Tensor) -> Sequence[Tensor]:
    """Frames in parts; one that is empty where there are none."""
    return torch.split(feats_ND, _CHUNK_FRAMES[feats_ND.device.type])


def _nearest_in_float64(feats_ND: Tensor, centroids_KD: Tensor) -> Tensor:
    mean_D = centroids_KD.double().mean(0)
    feats_ND, centroids_KD = feats_ND.double() - mean_D, centroids_KD.double() - mean_D
    norms_K = centroids_KD.square().sum(1)
    return torch.addmm(norms_K, feats_ND, centroids_KD.T, alpha=-2).argmin(1)


def block_sums(feats_ND: Tensor, centroids_KD: Tensor, device: torch.device) -> BlockSums:
    """Sums, counts and inertia of a block under the given centroids."""
    feats_ND, centroids = feats_ND.to(device), _Centroids.of(centroids_KD.to(device))
    sums_KD = torch.zeros(centroids_KD.shape, dtype=torch.float64, device=device)
    indices, distances = [], []
    for chunk_ND in _chunks(feats_ND):
        found = centroids.nearest(chunk_ND)
        indices.append(found.index_N)
        distances.append(found.distance_N)
        add_sums(sums_KD, chunk_ND, found.index_N)
    counts_K = torch.bincount(torch.cat(indices), minlength=len(centroids_KD))
    return BlockSums(
        sums=sums_KD.cpu().numpy(),
        counts=counts_K.cpu().numpy(),
        inertia=float(np.sum(torch.cat(distances).double().cpu().numpy())),
    )


def add_sums(sums_KD: Tensor, feats_ND: Tensor, index_N: Tensor) -> None:
    """Add each frame to the sum of its cluster, in float64 and in an order that is always one."""
    if feats_ND.device.type == "cpu":
        sums_KD.index_add_(0, index_N, feats_ND.double())
    else:  # atomics would add in any order
        add_product(sums_KD, feats_ND, index_N)


def add_product(sums_KD: Tensor, feats_ND: Tensor, index_N: Tensor) -> None:
    """`add_sums` as a product of matrices, which accelerators do in one order."""
    chunks = (torch.split(all_N, _PRODUCT_FRAMES) for all_N in (feats_ND, index_N))
    for chunk_ND, index_C in zip(*chunks, strict=True):
        member_CK = torch.zeros(
            len(chunk_ND), len(sums_KD), dtype=torch.float64, device=sums_KD.device
        )
        member_CK.scatter_(1, index_C[:, None], 1)
        sums_KD.addmm_(member_CK.T, chunk_ND.double())


def farthest_frames(
    feats_ND: Tensor, centroids_KD: Tensor, count: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The ``count`` frames farthest from their centroid: squared distances and frames, in order."""
    distance_N = nearest(feats_ND.to(device), centroids_KD.to(device)).distance_N.cpu()
    order = torch.argsort(distance_N, descending=True, stable=True)[:count]
    return distance_N[order], feats_ND[order]


def subsample(feats_ND: Tensor, count: int, *, seed: int, block: int) -> Tensor:
    """At most ``count`` frames of a block chosen at random, in their order."""
    rng = np.random.Generator(np.random.Philox(key=[seed, block]))
    rows = rng.permutation(len(feats_ND))[:count]
    return feats_ND[torch.from_numpy(np.sort(rows))]


def plus_plus(feats_MD: Tensor, num_clusters: int, seed: int) -> Tensor:
    """``centroids_KD``: frames, each likely by its squared distance to those chosen before."""
    rng = np.random.Generator(np.random.Philox(seed))
    norms_M = feats_MD.square().sum(1)
    chosen = [int(rng.integers(len(feats_MD)))]
    closest_M = torch.full_like(norms_M, torch.inf)
    while len(chosen) < num_clusters:
        last_D = feats_MD[chosen[-1]]
        distance_M = norms_M - 2 * (feats_MD @ last_D) + last_D.square().sum()
        closest_M = torch.minimum(closest_M, distance_M.clamp_min(0))
        closest_M[chosen[-1]] = 0  # rounding must not let a frame be chosen twice
        cumulative_M = np.cumsum(closest_M.double().numpy())
        drawn = rng.random() * cumulative_M[-1]
        row = int(np.searchsorted(cumulative_M, drawn, side="right"))
        chosen.append(min(row, len(feats_MD) - 1))
    return feats_MD[chosen]


def fit(
    blocks: Blocks,
    num_clusters: int,
    seed: int,
    *,
    on_iteration: Callable[[int, float], None] = lambda _number, _inertia: None,
) -> Fit:
    """Iterate until inertia settles.

    Raises DataError when there are too few frames, or some are no numbers.
    """
    num_frames, centroids_KD = _initial(blocks, num_clusters, seed)
    before: float | None = None
    for iteration in range(1, MAX_ITERATIONS + 1):
        total = _total(blocks, centroids_KD)
        if not math.isfinite(total.inertia):
            raise DataError(_NO_NUMBERS)
        on_iteration(iteration, total.inertia)
        empty_clusters = np.flatnonzero(total.counts == 0)
        settled = before is not None and abs(before - total.inertia) <= TOLERANCE * before
        if iteration == MAX_ITERATIONS or (settled and not empty_clusters.size):
            break
        before = total.inertia
        centroids_KD = means(total, _reseeded(blocks, centroids_KD, empty_clusters))
    return Fit(
        centroids=centroids_KD,
        inertia=total.inertia,
        iterations=iteration,
        num_frames=num_frames,
    )


def means(total: BlockSums, fallback_KD: Tensor) -> Tensor:
    """Centroids of the clusters that have frames, else the fallback's."""
    counts_K1 = total.counts[:, None]
    means_KD = torch.from_numpy((total.sums / np.maximum(counts_K1, 1)).astype(np.float32))
    return torch.where(torch.from_numpy(counts_K1 > 0), means_KD, fallback_KD)


def _initial(blocks: Blocks, num_clusters: int, seed: int) -> tuple[int, Tensor]:
    """Number of frames in all blocks, and the centroids of k-means++ on a subsample of them."""
    per_block = -(-INIT_FRAMES_PER_CLUSTER * num_clusters // max(len(blocks), 1))

    def sampled(feats_ND: Tensor, block: int, _device: torch.device) -> tuple[int, Tensor]:
        return len(feats_ND), subsample(feats_ND, per_block, seed=seed, block=block)

    parts = list(blocks.ask(sampled))
    num_frames = sum(count for count, _ in parts)
    if not num_frames:
        raise DataError(_NO_NUMBERS)
    needed = MIN_FRAMES_PER_CLUSTER * num_clusters
    if num_frames < needed:
        raise DataError(
            f"num_clusters: {num_frames} frames cannot fit {num_clusters} clusters, which need "
            f"{needed}; lower num_clusters, raise the hours of audio it is fitted on or add audio"
        )
    return num_frames, plus_plus(torch.cat([feats for _, feats in parts]), num_clusters, seed)


def _total(blocks: Blocks, centroids_KD: Tensor) -> BlockSums:
    """The sums of all blocks, added in their order."""
    parts = blocks.ask(lambda feats_ND, _, device: block_sums(feats_ND, centroids_KD, device))
    return reduce(add, parts)


def _reseeded(blocks: Blocks, centroids_KD: Tensor, empty_clusters: Integers) -> Tensor:
    """The centroids with those of empty clusters moved to the frames that lie farthest from any."""
    if not empty_clusters.size:
        return centroids_KD
    count = len(empty_clusters)

    def farthest(feats_ND: Tensor, _block: int, device: torch.device) -> tuple[Tensor, Tensor]:
        return farthest_frames(feats_ND, centroids_KD, count, device)

    parts = list(blocks.ask(farthest))
    distances = torch.cat([d for d, _ in parts])
    feats_ND = torch.cat([f for _, f in parts])
    order = torch.argsort(distances, descending=True, stable=True)[:count]
    moved_KD = centroids_KD.clone()
    moved_KD[torch.from_numpy(empty_clusters)] = feats_ND[order]
    return moved_KD
