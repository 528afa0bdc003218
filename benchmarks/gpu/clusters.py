"""Frames a second of k-means: the nearest centroid alone, and an iteration as the stage does it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu.device import Peak, memory_rate, peak, seconds_of
from benchmarks.gpu.figures import Figure, Setting
from jobs.speech.lloyd import block_sums, nearest

ROW = "k-means"
_DIM = 768


def figures(setting: Setting) -> Iterator[Figure]:
    """By number of clusters; features are drawn around as many centres."""
    best, bytes_per_s = peak(setting, torch.float32), memory_rate(setting)
    for num_clusters in setting.sized((100, 500), (10, 50)):
        yield from _figures(setting, num_clusters, best, bytes_per_s)


def _figures(
    setting: Setting, num_clusters: int, best: Peak, bytes_per_s: float
) -> Iterator[Figure]:
    device, num_frames = setting.torch_device, setting.sized(200_000, 2_000)
    torch.manual_seed(0)
    centroids_KD = torch.randn(num_clusters, _DIM)
    feats_ND = centroids_KD[torch.randint(num_clusters, (num_frames,))]
    feats_ND = feats_ND + torch.randn(num_frames, _DIM)
    here_ND, here_KD = feats_ND.to(device), centroids_KD.to(device)
    took_s = seconds_of(setting, lambda: nearest(here_ND, here_KD))
    flops_per_s = 2.0 * num_frames * num_clusters * _DIM / took_s
    read_per_s = 4.0 * num_frames * _DIM / took_s
    case, unit = f"{num_clusters} clusters", "frames/s"
    rate = num_frames / took_s
    for share, of in (
        (flops_per_s / best.flops_per_s, best.name),
        (read_per_s / bytes_per_s, "measured copy, frames read once"),
    ):
        yield Figure(row=ROW, case=f"{case}, nearest", value=rate, unit=unit, share=share, peak=of)
    took_s = seconds_of(setting, lambda: block_sums(feats_ND, centroids_KD, device), repeats=3)
    yield Figure(
        row=ROW,
        case=f"{case}, iteration",
        value=num_frames / took_s,
        unit=unit,
        note="frames in host memory",
    )
