"""Cuts recordings into utterances: whole where they fit, equal windows where they are too long.

In: the length of a recording. Out: spans of samples at 16 kHz. The length of an utterance changes
its features, so these bounds are part of the corpus' key.
"""

from __future__ import annotations

from itertools import pairwise
from math import ceil
from typing import NamedTuple

import numpy as np

from jobs.audio.decode import Wave
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Windows

SILENCE_PEAK = 10 ** (-50 / 20)
"""A recording that never exceeds this amplitude (-50 dB of full scale) holds no speech."""


class Span(NamedTuple):
    """A stretch of a recording, in samples at 16 kHz."""

    start_sample: int
    num_samples: int


def cut(num_samples: int, windows: Windows) -> list[Span]:
    """The utterances of a recording in order; none when it is shorter than ``min_s``."""
    if num_samples < windows.min_s * SAMPLE_RATE_HZ:
        return []
    count = ceil(num_samples / (windows.max_s * SAMPLE_RATE_HZ))
    edges = [num_samples * i // count for i in range(count + 1)]
    return [Span(a, b - a) for a, b in pairwise(edges)]


def is_silent(wav_S: Wave) -> bool:
    """Whether nothing can be heard in the wave."""
    return bool(np.abs(wav_S).max(initial=0.0) < SILENCE_PEAK)
