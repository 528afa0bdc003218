"""Gives every frame of a stretch of audio a cluster: what HuBERT's masked prediction predicts.

In: one long int16 wave whose frames lie on a grid of ``hop`` samples. Out: one integer per frame.
Frame t covers samples ``t*hop .. t*hop + field``; MFCC windows are centred on the same stretch, so
targets and predictions line up. k-means here works in memory on a sample of frames; the tokenizer's
own, over many nodes, is ``jobs.speech.kmeans``.

Shapes: S samples, T frames, D features, K clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torchaudio
from torch import Tensor

from orchestrator.quantities import SAMPLE_RATE_HZ

Samples = npt.NDArray[np.int16]
Features = Callable[[Tensor], Tensor]
"""From ``wav_S`` float32 to ``feats_TD``, one row per whole frame of the wave."""

CHUNK_S = 20.0
"""Seconds of audio in one pass of a feature function."""
_MFCC_WINDOW_SAMPLES = 400
_FIT_FRAMES = 200_000
_INIT_FRAMES = 20_000
_MAX_ITERATIONS = 40
_STOP_BELOW = 1e-4


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


def grid_of(kernels: Sequence[int], strides: Sequence[int]) -> Grid:
    """The grid of a stack of unpadded convolutions."""
    hop, field = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    return Grid(hop, field)


def to_float(samples_S: Samples) -> Tensor:
    """``wav_S`` float32 in [-1, 1]."""
    return torch.from_numpy(samples_S.astype(np.float32) / 32_768)


def frames_of(stream_S: Samples, grid: Grid, features: Features) -> npt.NDArray[np.float32]:
    """Features of every frame of the stream, ``TD``, computed chunk by chunk."""
    total = grid.num_frames(len(stream_S))
    step = int(CHUNK_S * SAMPLE_RATE_HZ) // grid.hop
    edges = [*range(0, total, step), total]
    rows = []
    for first, last in pairwise(edges):
        start = first * grid.hop
        chunk_S = stream_S[start : start + grid.num_samples(last - first)]
        with torch.inference_mode():
            rows.append(features(to_float(chunk_S)).numpy())
    return np.concatenate(rows)


def mfcc(grid: Grid) -> Features:
    """13 MFCC with first and second differences at the encoder's frame rate."""
    transform = torchaudio.transforms.MFCC(
        sample_rate=SAMPLE_RATE_HZ,
        n_mfcc=13,
        log_mels=True,
        melkwargs={
            "n_fft": _MFCC_WINDOW_SAMPLES,
            "hop_length": grid.hop,
            "n_mels": 40,
            "center": False,
        },
    )
    lead = (grid.field - _MFCC_WINDOW_SAMPLES) // 2

    def compute(wav_S: Tensor) -> Tensor:
        num_frames = grid.num_frames(len(wav_S))
        # A field narrower than the window (lead < 0) looks beyond the ends of the wave, at silence.
        padded_S = torch.nn.functional.pad(wav_S, (max(0, -lead), _MFCC_WINDOW_SAMPLES))
        static_DT = transform(padded_S[max(0, lead) :])[:, :num_frames]
        first_DT = torchaudio.functional.compute_deltas(static_DT)
        second_DT = torchaudio.functional.compute_deltas(first_DT)
        return torch.cat((static_DT, first_DT, second_DT)).T

    return compute


def standardise(feats_TD: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Features of zero mean and unit variance, so that no dimension rules the distances."""
    return (feats_TD - feats_TD.mean(axis=0)) / (feats_TD.std(axis=0) + 1e-6)


def fit(feats_TD: npt.NDArray[np.float32], num_clusters: int, seed: int) -> Tensor:
    """Centroids ``KD`` of k-means (k-means++, Lloyd) on a seeded sample of the frames."""
    rng = np.random.default_rng((seed, 0xC1))
    sample = np.sort(rng.permutation(len(feats_TD))[:_FIT_FRAMES])
    data_TD = torch.from_numpy(np.ascontiguousarray(feats_TD[sample], dtype=np.float32))
    centroids_KD = _spread(data_TD, num_clusters, rng)
    last = float("inf")
    for _ in range(_MAX_ITERATIONS):
        labels_T, inertia = _assign(data_TD, centroids_KD)
        if last - inertia < _STOP_BELOW * inertia:
            break
        last = inertia
        centroids_KD = _means(data_TD, labels_T, centroids_KD)
    return centroids_KD


def label(feats_TD: npt.NDArray[np.float32], centroids_KD: Tensor) -> npt.NDArray[np.int64]:
    """The nearest centroid of every frame."""
    parts = [
        _assign(torch.from_numpy(part), centroids_KD)[0].numpy()
        for part in np.array_split(
            np.ascontiguousarray(feats_TD, dtype=np.float32), len(feats_TD) // 65_536 + 1
        )
    ]
    return np.concatenate(parts)


def _spread(data_TD: Tensor, num_clusters: int, rng: np.random.Generator) -> Tensor:
    """k-means++: each next centroid is a frame drawn by its squared distance to those chosen."""
    pool_TD = data_TD[torch.from_numpy(rng.permutation(len(data_TD))[:_INIT_FRAMES])]
    chosen = [int(rng.integers(len(pool_TD)))]
    nearest_T = (pool_TD - pool_TD[chosen[0]]).square().sum(1).double()
    for _ in range(num_clusters - 1):
        reached = rng.random() * float(nearest_T.sum())
        chosen.append(min(int(torch.searchsorted(nearest_T.cumsum(0), reached)), len(pool_TD) - 1))
        distance_T = (pool_TD - pool_TD[chosen[-1]]).square().sum(1).double()
        nearest_T = torch.minimum(nearest_T, distance_T)
    return pool_TD[chosen].clone()


def _assign(data_TD: Tensor, centroids_KD: Tensor) -> tuple[Tensor, float]:
    half_K = centroids_KD.square().sum(1) / 2
    best = (data_TD @ centroids_KD.T - half_K).max(1)
    inertia = float(
        data_TD.square().sum(dtype=torch.float64) - 2 * best.values.sum(dtype=torch.float64)
    )
    return best.indices, inertia


def _means(data_TD: Tensor, labels_T: Tensor, centroids_KD: Tensor) -> Tensor:
    """Means of the clusters; an empty one stays where it is."""
    sums_KD = torch.zeros(centroids_KD.shape, dtype=torch.float64)
    sums_KD.index_add_(0, labels_T, data_TD.double())
    counts_K = torch.bincount(labels_T, minlength=len(centroids_KD))
    means_KD = (sums_KD / counts_K.clamp(min=1)[:, None]).float()
    return torch.where(counts_K[:, None] > 0, means_KD, centroids_KD)
