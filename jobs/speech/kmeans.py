"""Fits a codebook: k-means over frames that stay in the memory of many workers.

In: a sample of utterances, cut into blocks. Out: ``centroids_KD`` in fp32, the same bytes with any
number of workers: blocks are a pure function of the sample, each gives float64 sums, and these are
added in the order of blocks, whichever finishes first. Init is k-means++ (Arthur and Vassilvitskii
2007) on a seeded subsample, then Lloyd's iterations.

Shapes: N frames, D features, K clusters, M subsampled frames.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import ray
import torch
from torch import Tensor

from jobs.speech.pool import Pool
from jobs.speech.units import EncoderSpec, nearest
from jobs.speech.utterances import Root, Utterance, WaveReader, batches, pages
from orchestrator.errors import RequestError
from orchestrator.quantities import SAMPLE_RATE_HZ

Answer = TypeVar("Answer")
Floats64 = npt.NDArray[np.float64]

MAX_ITERATIONS = 50
TOLERANCE = 1e-4
"""Relative change of inertia below which the fit ends."""
BLOCK_SAMPLES = 240 * SAMPLE_RATE_HZ
INIT_FRAMES_PER_CLUSTER = 100
"""Frames that k-means++ chooses from, per cluster."""
MIN_FRAMES_PER_CLUSTER = 2


def sample_rows(
    ids: Sequence[str], num_samples: Sequence[int], fit_hours: float, seed: int
) -> list[int]:
    """Rows of a random sample of at least ``fit_hours``, or all rows, in manifest order.

    The order of choice is that of the ids' hashes: another corpus with the same utterance treats it
    alike.
    """
    wanted = fit_hours * 3600 * SAMPLE_RATE_HZ
    chosen: list[int] = []
    for row in sorted(range(len(ids)), key=lambda r: _rank(seed, ids[r])):
        if wanted <= 0:
            break
        chosen.append(row)
        wanted -= num_samples[row]
    return sorted(chosen)


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


@dataclass(frozen=True, kw_only=True)
class BlockSums:
    """What one block says about one set of centroids."""

    sums: Floats64
    """KxD: of each cluster's frames."""
    counts: npt.NDArray[np.int64]
    """K: frames of each cluster."""
    inertia: float
    """Sum of squared distances."""

    def __add__(self, other: BlockSums) -> BlockSums:
        return BlockSums(
            sums=self.sums + other.sums,
            counts=self.counts + other.counts,
            inertia=self.inertia + other.inertia,
        )


def block_sums(feats_ND: Tensor, centroids_KD: Tensor, device: torch.device) -> BlockSums:
    """Sums, counts and inertia of a block under the given centroids."""
    index_N, distance_N = _assigned(feats_ND, centroids_KD, device)
    # On the CPU, one row after the other: on a GPU, atomics would add in any order.
    sums_KD = torch.zeros(centroids_KD.shape, dtype=torch.float64)
    sums_KD.index_add_(0, index_N, feats_ND.double())
    counts_K = torch.bincount(index_N, minlength=len(centroids_KD))
    return BlockSums(
        sums=sums_KD.numpy(),
        counts=counts_K.numpy(),
        inertia=float(np.sum(distance_N.double().numpy())),
    )


def farthest_frames(
    feats_ND: Tensor, centroids_KD: Tensor, count: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The ``count`` frames farthest from their centroid: squared distances and frames, in order."""
    _, distance_N = _assigned(feats_ND, centroids_KD, device)
    order = torch.argsort(distance_N, descending=True, stable=True)[:count]
    return distance_N[order], feats_ND[order]


def _assigned(
    feats_ND: Tensor, centroids_KD: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    index_N, distance_N = nearest(feats_ND.to(device), centroids_KD.to(device))
    return index_N.cpu(), distance_N.cpu()


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
        place = rng.random() * cumulative_M[-1]
        chosen.append(
            min(int(np.searchsorted(cumulative_M, place, side="right")), len(feats_MD) - 1)
        )
    return feats_MD[chosen]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a worker is asked of one block."""

    what: Literal["subsample", "sums", "farthest"]
    block: int
    utterances: Sequence[Utterance]
    """Its utterances, for a worker that does not hold the block's frames."""
    count: int = 0
    """Frames of a subsample, or of the farthest."""
    seed: int = 0
    """Of the subsample."""
    centroids: ray.ObjectRef | None = None
    """``centroids_KD``, in Ray's object store."""


class BlockKeeper:
    """The codebook stage's worker: computes a block's features once, keeps them in host memory."""

    def __init__(self, encoder: EncoderSpec, roots: Mapping[str, Root]) -> None:
        self._hubert = encoder.load()
        self._reader = WaveReader(roots)
        self._blocks: dict[int, Tensor] = {}

    def __call__(self, ask: Ask) -> Any:
        """The answer to one question about one block."""
        if ask.block not in self._blocks:
            self._blocks[ask.block] = self._features(ask.utterances)
        feats_ND = self._blocks[ask.block]
        if ask.what == "subsample":
            return len(feats_ND), _subsample(feats_ND, ask)
        centroids_KD, device = torch.tensor(ray.get(ask.centroids)), self._hubert.device
        if ask.what == "sums":
            return block_sums(feats_ND, centroids_KD, device)
        return farthest_frames(feats_ND, centroids_KD, ask.count, device)

    def _features(self, utterances: Sequence[Utterance]) -> Tensor:
        """``feats_ND`` of a block, utterances in their order."""
        feats: list[Tensor] = [torch.empty(0)] * len(utterances)
        for positions, waves in batches(utterances, self._reader):
            for position, feats_TD in zip(positions, self._hubert.features(waves), strict=True):
                feats[position] = feats_TD.cpu()
        return torch.cat(feats)


def _subsample(feats_ND: Tensor, ask: Ask) -> Tensor:
    rng = np.random.Generator(np.random.Philox(key=[ask.seed, ask.block]))
    rows = rng.permutation(len(feats_ND))[: ask.count]
    return feats_ND[torch.from_numpy(np.sort(rows))]


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


class Blocks:
    """The sample as its workers hold it."""

    def __init__(
        self,
        pool: Pool,
        utterances: Sequence[Utterance],
        *,
        tick: Callable[[], None] = lambda: None,
        max_samples: int = BLOCK_SAMPLES,
    ) -> None:
        self._pool = pool
        self._blocks = list(pages(utterances, max_samples))
        self._tick = tick

    def __len__(self) -> int:
        return len(self._blocks)

    def ask(
        self,
        what: Literal["subsample", "sums", "farthest"],
        centroids_KD: Tensor | None = None,
        **more: int,
    ) -> Iterator[Any]:
        """Every block's answer, in the order of blocks."""
        centroids = None if centroids_KD is None else ray.put(centroids_KD.numpy())

        def payload(block: int) -> Ask:
            utterances = self._blocks[block]
            return Ask(what=what, block=block, utterances=utterances, centroids=centroids, **more)

        answers = self._pool.run(range(len(self)), payload, sticky=True, tick=self._tick)
        return in_order(answers)


def in_order(answers: Iterable[tuple[int, Answer]]) -> Iterator[Answer]:
    """Answers numbered from 0 in that order, each as soon as those before it are there."""
    early: dict[int, Answer] = {}
    upcoming = 0
    for number, answer in answers:
        early[number] = answer
        while upcoming in early:
            yield early.pop(upcoming)
            upcoming += 1


def fit(
    blocks: Blocks,
    num_clusters: int,
    seed: int,
    *,
    on_iteration: Callable[[int, float], None] = lambda _number, _inertia: None,
) -> Fit:
    """Lloyd's iterations until inertia settles.

    Raises RequestError when there are too few frames.
    """
    num_frames, centroids_KD = _initial(blocks, num_clusters, seed)
    before: float | None = None
    for iteration in range(1, MAX_ITERATIONS + 1):
        sums = _added(blocks.ask("sums", centroids_KD))
        on_iteration(iteration, sums.inertia)
        empty_clusters = np.flatnonzero(sums.counts == 0)
        settled = before is not None and abs(before - sums.inertia) <= TOLERANCE * before
        if iteration == MAX_ITERATIONS or (settled and not empty_clusters.size):
            break
        before = sums.inertia
        centroids_KD = _means(sums, _reseeded(blocks, centroids_KD, empty_clusters))
    return Fit(
        centroids=centroids_KD,
        inertia=sums.inertia,
        iterations=iteration,
        num_frames=num_frames,
    )


def _initial(blocks: Blocks, num_clusters: int, seed: int) -> tuple[int, Tensor]:
    """Number of frames in all blocks, and the centroids of k-means++ on a subsample of them."""
    per_block = -(-INIT_FRAMES_PER_CLUSTER * num_clusters // max(len(blocks), 1))
    answers = list(blocks.ask("subsample", count=per_block, seed=seed))
    num_frames = sum(count for count, _ in answers)
    needed = MIN_FRAMES_PER_CLUSTER * num_clusters
    if num_frames < needed:
        raise RequestError(
            f"tokenizer: {num_frames} frames cannot fit {num_clusters} clusters, which need "
            f"{needed}; lower num_clusters, raise fit_hours or add audio"
        )
    return num_frames, plus_plus(torch.cat([feats for _, feats in answers]), num_clusters, seed)


def _added(parts: Iterable[BlockSums]) -> BlockSums:
    total: BlockSums | None = None
    for part in parts:
        total = part if total is None else total + part
    assert total is not None, "a sample has at least one block"
    return total


def _reseeded(
    blocks: Blocks, centroids_KD: Tensor, empty_clusters: npt.NDArray[np.int64]
) -> Tensor:
    """The centroids with those of empty clusters moved to the frames that lie farthest from any."""
    if not empty_clusters.size:
        return centroids_KD
    answers = list(blocks.ask("farthest", centroids_KD, count=len(empty_clusters)))
    distances = torch.cat([d for d, _ in answers])
    feats_ND = torch.cat([f for _, f in answers])
    order = torch.argsort(distances, descending=True, stable=True)[: len(empty_clusters)]
    moved_KD = centroids_KD.clone()
    moved_KD[torch.from_numpy(empty_clusters)] = feats_ND[order]
    return moved_KD


def _means(sums: BlockSums, fallback_KD: Tensor) -> Tensor:
    """Centroids of the clusters that have frames, else the fallback's."""
    counts_K1 = sums.counts[:, None]
    means_KD = torch.from_numpy((sums.sums / np.maximum(counts_K1, 1)).astype(np.float32))
    return torch.where(torch.from_numpy(counts_K1 > 0), means_KD, fallback_KD)
