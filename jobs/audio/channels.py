"""Makes one signal of the channels of a recording.

In: ``wav_CS``. Out: ``wav_S``, C channels, S samples of the file's own rate. Each stretch is judged
by its own samples, so that a recording can be entered anywhere with the same bytes. Channels in
opposite phase, as badly soldered cables and some stereo effects make them, have a mean that is
next to nothing: the loudest of them is taken in its place, and the caller told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Wave = npt.NDArray[np.float32]
Channels = Literal["mix", "loudest", "first"]

CANCELS_BELOW = 0.1
"""A mix with less than this share of the power that unrelated channels would give cancels itself.

One for unrelated channels, and where one alone is not silent; C where all C are alike.
"""


class Mono(NamedTuple):
    """One signal made of several."""

    wav_S: Wave
    cancelled: bool = False
    """Whether it is the loudest channel because the mix cancels itself."""


def mono(wav_CS: Wave, channels: Channels | int) -> Mono:
    """One signal, as ``channels`` says; a number is that channel alone, counted from 0.

    Raises ValueError when there is no such channel.
    """
    if isinstance(channels, int):
        if channels >= len(wav_CS):
            raise ValueError(f"has no channel {channels}, only {len(wav_CS)}")
        return Mono(wav_CS[channels])
    return _MADE_BY[channels](wav_CS)


def widened(wav_CS: Wave, num_channels: int) -> Wave:
    """With as many channels at least; each that is added is their mean, so the mix stays."""
    missing = num_channels - len(wav_CS)
    if missing <= 0:
        return wav_CS
    return np.concatenate([wav_CS, *[wav_CS.mean(axis=0, keepdims=True)] * missing])


def _mix(wav_CS: Wave) -> Mono:
    mean_S: Wave = wav_CS.mean(axis=0)
    if len(wav_CS) > 1:
        unrelated = _power(wav_CS).sum() / len(wav_CS) ** 2
        if _power(mean_S[None])[0] < CANCELS_BELOW * unrelated:
            return Mono(_loudest(wav_CS).wav_S, cancelled=True)
    return Mono(mean_S)


def _loudest(wav_CS: Wave) -> Mono:
    """The channel with the most power; the first of equals."""
    return Mono(wav_CS[int(_power(wav_CS).argmax())])


def _first(wav_CS: Wave) -> Mono:
    return Mono(wav_CS[0])


_MADE_BY: Mapping[Channels, Callable[[Wave], Mono]] = {
    "mix": _mix,
    "loudest": _loudest,
    "first": _first,
}


def _power(wav_CS: Wave) -> npt.NDArray[np.float64]:
    """Of each channel; an offset has none."""
    return np.asarray(np.var(wav_CS, axis=1, dtype=np.float64))
