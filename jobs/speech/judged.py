"""Units and MFCC of recordings whose phones are known, for whoever judges the units by them.

Shapes: T frames, D features, K clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from jobs.audio.corpus_tables import Part
from jobs.audio.decode import UnreadableAudioError, Wave
from jobs.audio.roots import Root
from jobs.speech import targets
from jobs.speech.lloyd import Nearest, nearest
from jobs.speech.speech_encoder import is_finite
from jobs.speech.units import EncoderSpec, read_codebook
from jobs.speech.utterances import WaveReader, batches
from jobs.unit_shards import Units
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Windows


class Judged(NamedTuple):
    """One window of a recording."""

    row: int
    """Number of the recording's row in the corpus."""
    start_sample: int
    """In the recording, at 16 kHz."""
    num_samples: int
    units_T: Units
    mfcc_TD: npt.NDArray[np.float32]


class Spread(NamedTuple):
    """How far frames are from their centroids, and from each other; adds up over tasks."""

    num_frames: int
    sum_D: npt.NDArray[np.float64]
    squares: float
    """Sum of squares of all features."""
    inertia: float
    """Sum of squared distances to the nearest centroid."""

    @classmethod
    def of(cls, feats_ND: torch.Tensor, found: Nearest) -> Spread:
        """Of frames and their nearest centroids."""
        exact_ND = feats_ND.double()
        sum_D, squares = exact_ND.sum(0).cpu().numpy(), float(exact_ND.square().sum())
        return cls(len(feats_ND), sum_D, squares, float(found.distance_N.double().sum()))

    def __add__(self, other: tuple[object, ...]) -> Spread:
        """Both together."""
        return Spread(*(one + its for one, its in zip(self, other, strict=True)))  # type: ignore[operator]

    @property
    def unexplained(self) -> float:
        """Share of the features' variance that is left within clusters; 1 where there is none."""
        variance = self.squares - float(self.sum_D @ self.sum_D) / self.num_frames
        return self.inertia / variance if variance > 0 else 1.0


class JudgeWorker:
    """The unit_quality stage's worker."""

    def __init__(
        self, encoder: EncoderSpec, roots: Mapping[str, Root], windows: Windows, codebook_url: str
    ) -> None:
        self._encoder, self._reader, self._windows = encoder.load(), WaveReader(roots), windows
        centroids_KD = read_codebook(Storage(codebook_url))["centroids"]
        self._centroids_KD = centroids_KD.to(self._encoder.device)
        self._mfcc = targets.mfcc(self._encoder.grid)

    def __call__(self, parts: Sequence[Part]) -> tuple[list[Judged], Spread]:
        """The windows of some recordings that are used; nothing of one that is unreadable."""
        windows = [
            window
            for _, own in groupby(parts, lambda part: part.row.number)
            for window in self._windows_of(list(own))
        ]
        waves = [wav_S for _, _, wav_S in windows]
        spread = Spread(0, np.zeros(self._encoder.dim), 0.0, 0.0)
        units: dict[int, Units] = {}
        for numbers, batch in batches(waves, self._encoder.max_padded_samples):
            for number, feats_TD in zip(numbers, self._encoder.features(batch), strict=True):
                if len(feats_TD) and is_finite(feats_TD):
                    units[number], its = self._units(feats_TD)
                    spread += its
        judged = []
        for number, units_T in sorted(units.items()):
            row, start, wav_S = windows[number]
            judged.append(Judged(row, start, len(wav_S), units_T, self._mfcc_of(wav_S)))
        return judged, spread

    def _windows_of(self, parts: Sequence[Part]) -> list[tuple[int, int, Wave]]:
        try:
            return [
                (part.row.number, window.utterance.start_sample, window.wav_S)
                for part in parts
                for window in self._reader.windows(part, self._windows)
                if not window.left_out(self._windows)
            ]
        except UnreadableAudioError:
            return []  # the stage that reads all of it says so

    def _units(self, feats_TD: torch.Tensor) -> tuple[Units, Spread]:
        found = nearest(feats_TD, self._centroids_KD)
        units_T: Units = found.index_N.cpu().numpy().astype(np.uint16)
        return units_T, Spread.of(feats_TD, found)

    def _mfcc_of(self, wav_S: Wave) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            mfcc_TD: npt.NDArray[np.float32] = self._mfcc(torch.from_numpy(wav_S)).numpy()
        return mfcc_TD
