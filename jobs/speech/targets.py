"""Gives every frame of some audio a cluster: what HuBERT's masked prediction predicts.

In: utterances in blocks; a block's utterances, each trimmed to whole hops, are one wave, whose
frames lie on a grid. Frame t covers samples ``t*hop .. t*hop + field``; MFCC windows are centred on
the same samples, so targets and predictions line up. Out: per block, one integer per frame.

Shapes: S samples, N and T frames, D features, K clusters.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchaudio
from torch import Tensor

from jobs.audio.roots import Root
from jobs.speech.feature_blocks import BLOCK_SAMPLES
from jobs.speech.grid import Grid, grid_of
from jobs.speech.lloyd import nearest, subsample
from jobs.speech.sample import MeasureTask
from jobs.speech.speech_encoder import is_finite
from jobs.speech.units import EncoderSpec, create_same, read_codebook
from jobs.speech.utterances import Utterance, WaveReader, pages
from jobs.unit_shards import shard_path
from orchestrator.errors import DataError
from orchestrator.ledger.storage import Storage
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Pretrain

Samples = npt.NDArray[np.int16]
Labels = npt.NDArray[np.uint16]
Features = Callable[[Tensor], Tensor]
"""From ``wav_S`` float32 to ``feats_TD``, one row per whole frame of the wave."""

CHUNK_S = 20.0
"""Seconds of audio in one pass of a feature function."""
FIT_FRAMES = 200_000
"""Frames that k-means is fitted on, in all blocks together."""
_MFCC_WINDOW_SAMPLES = 400
_MIN_STD = 1e-6


@dataclass(frozen=True)
class AudioBlocks:
    """The audio to train on, in blocks that are a pure function of the sample and the recipe."""

    blocks: Sequence[Sequence[Utterance]]
    grid: Grid

    @classmethod
    def of(cls, utterances: Sequence[Utterance], spec: Pretrain) -> AudioBlocks:
        """The blocks of a sample, neighbours together."""
        grid = grid_of(spec.conv_kernel, spec.conv_stride)
        return cls(list(pages(utterances, lambda u: u.num_samples, BLOCK_SAMPLES)), grid)

    @cached_property
    def num_samples(self) -> npt.NDArray[np.int64]:
        """Samples of each block."""
        sizes = [sum(self.grid.trimmed(u.num_samples) for u in block) for block in self.blocks]
        return np.array(sizes, np.int64)

    @cached_property
    def num_frames(self) -> npt.NDArray[np.int64]:
        """Frames of each block."""
        return np.array([self.grid.num_frames(int(n)) for n in self.num_samples], np.int64)

    @property
    def hours(self) -> float:
        """Of audio."""
        return float(self.num_samples.sum()) / SAMPLE_RATE_HZ / 3600


def read_block(block: Sequence[Utterance], reader: WaveReader, grid: Grid) -> Samples:
    """The wave of a block: crops of it need no padding."""
    waves = [reader.read(utterance) for utterance in block]
    trimmed = [wav_S[: grid.trimmed(len(wav_S))].clip(-1, 1) for wav_S in waves]
    return np.round(np.concatenate(trimmed) * 32_767).astype(np.int16)


def to_float(samples_S: Samples) -> Tensor:
    """``wav_S`` float32 in [-1, 1]."""
    return torch.from_numpy(samples_S.astype(np.float32) / 32_768)


def frames_of(
    wave_S: Samples, grid: Grid, features: Features, *, chunk_s: float = CHUNK_S
) -> Tensor:
    """``feats_TD`` of every frame of a wave, computed chunk by chunk."""
    total = grid.num_frames(len(wave_S))
    edges = [*range(0, total, int(chunk_s * SAMPLE_RATE_HZ) // grid.hop), total]
    rows = [torch.zeros(0)] if not total else []
    for first, last in pairwise(edges):
        start = first * grid.hop
        chunk_S = wave_S[start : start + grid.num_samples(last - first)]
        with torch.inference_mode():
            rows.append(features(to_float(chunk_S)).cpu())
    return torch.cat(rows)


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


@dataclass(frozen=True, kw_only=True)
class TargetTask:
    """A block to be sampled, or to be labelled."""

    block: int
    utterances: Sequence[Utterance]
    count: int = 0
    """Frames to be sampled; 0 labels the block."""
    seed: int = 0


class TargetWorker:
    """The targets stage's worker: samples a block's features, or writes its labels."""

    def __init__(
        self, encoder: EncoderSpec | None, grid: Grid, roots: Mapping[str, Root], out_url: str
    ) -> None:
        """``encoder``: whose layer gives the features; MFCC when there is none."""
        self._features = mfcc(grid)
        if encoder:
            loaded = encoder.load()
            self._features = lambda wav_S: loaded.features([wav_S.numpy()])[0]
        self._grid, self._reader, self._out = grid, WaveReader(roots), Storage(out_url)

    def __call__(self, task: TargetTask | MeasureTask) -> Any:
        """The frames of a sample; None for labels, which are in the artifact then.

        The windows that were to be found.
        """
        if isinstance(task, MeasureTask):
            return task(self._reader)
        wave_S = read_block(task.utterances, self._reader, self._grid)
        feats_TD = frames_of(wave_S, self._grid, self._features)
        if task.count:
            return subsample(feats_TD, task.count, seed=task.seed, block=task.block)
        write_labels(self._out, task.block, label(feats_TD, self._clusters))
        return None

    @cached_property
    def _clusters(self) -> dict[str, Tensor]:
        return read_codebook(self._out)


def scaling_of(feats_ND: Tensor, *, standardise: bool) -> dict[str, Tensor]:
    """What is taken from features and what they are divided by, ``D`` each.

    Nothing, unless ``standardise``, which lets no dimension rule the distances.
    """
    if not standardise:
        return {"mean": torch.zeros(feats_ND.shape[1]), "std": torch.ones(feats_ND.shape[1])}
    exact_ND = feats_ND.double()
    std_D = exact_ND.std(0, correction=0).float() + _MIN_STD
    return {"mean": exact_ND.mean(0).float(), "std": std_D}


def scaled(feats_ND: Tensor, scaling: Mapping[str, Tensor]) -> Tensor:
    """Features as k-means sees them."""
    return (feats_ND - scaling["mean"]) / scaling["std"]


def label(feats_TD: Tensor, clusters: Mapping[str, Tensor]) -> Labels:
    """The nearest centroid of every frame."""
    if not len(feats_TD):
        return np.zeros(0, np.uint16)
    if not is_finite(feats_TD):
        raise DataError(
            "targets: features hold NaN or infinity; see that the recordings and the weights of "
            "the iteration before are whole"
        )
    index_T = nearest(scaled(feats_TD, clusters), clusters["centroids"]).index_N
    labels_T: Labels = index_T.numpy().astype(np.uint16)
    return labels_T


def write_labels(out: Storage, block: int, labels_T: Labels) -> None:
    """Create a block's labels, or find the same there. Raises CorruptError when they differ."""
    buffer = io.BytesIO()
    np.save(buffer, labels_T, allow_pickle=False)
    create_same(out, shard_path(block, "npy"), buffer.getvalue())


def read_labels(targets: Storage, block: int) -> Labels:
    """A block's labels."""
    data = io.BytesIO(targets.read_bytes(shard_path(block, "npy")))
    labels_T: Labels = np.load(data, allow_pickle=False)
    return labels_T
