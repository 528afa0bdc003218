"""Finds when somebody speaks in a recording, while it is decoded.

In: blocks of ``wav_S``. Out: stretches of speech in seconds. A detector gives the probability of
speech frame by frame; two thresholds make stretches of it, cut at each pause. Memory is bounded
however long a recording is, and what comes out depends on its samples alone: neither on how they
are cut into blocks, nor on how many threads there are.

Shapes: S samples at 16 kHz, T frames, F samples of a frame with those before it.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.errors import RequestError
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import VoiceActivity

Wave = npt.NDArray[np.float32]
Probabilities = npt.NDArray[np.float32]

SILERO_SHA256 = "c59271c284ae9c8335d795d60e0bfdb71aaaceec578d9bd9ffc1b8153c319ea1"
"""Of the weights in silero-vad 6.2.3; others would find other stretches."""
_CHUNK_FRAMES = 512
"""How many frames the network hears at once: a constant, since it decides rounding."""


class Detector(Protocol):
    """Tells speech from everything else."""

    frame_s: float
    """Seconds of a frame."""

    def probabilities(self, blocks: Iterable[Wave]) -> Iterator[Probabilities]:
        """``p_T``, some frames at a time, from the first sample to the last."""


class Stretch(NamedTuple):
    """From when to when somebody speaks."""

    start_s: float
    end_s: float


def speech(blocks: Iterable[Wave], detector: Detector, rule: VoiceActivity) -> Iterator[Stretch]:
    """The stretches of speech of a recording in order, each as soon as it is known."""
    counted = _Counted(blocks)
    runs = _runs(detector.probabilities(counted), detector.frame_s, rule)
    earliest_s, upcoming = 0.0, next(runs, None)
    while (run := upcoming) is not None:
        upcoming = next(runs, None)
        latest_s = (run.end_s + upcoming.start_s) / 2 if upcoming else counted.seconds
        start_s = max(run.start_s - rule.pad_s, earliest_s)
        yield Stretch(round(start_s, 3), round(min(run.end_s + rule.pad_s, latest_s), 3))
        earliest_s = latest_s


def _runs(
    chunks: Iterable[Probabilities], frame_s: float, rule: VoiceActivity
) -> Iterator[Stretch]:
    """Runs of frames with speech, in order, none shorter than the rule has it."""
    for start, end in _frame_runs(chunks, rule, ceil(rule.min_pause_s / frame_s)):
        if (end - start) * frame_s >= rule.min_speech_s:
            yield Stretch(start * frame_s, end * frame_s)


def _frame_runs(
    chunks: Iterable[Probabilities], rule: VoiceActivity, min_pause: int
) -> Iterator[tuple[int, int]]:
    """First and one past the last frame of each run; ``min_pause`` frames end one."""
    start = pause = None
    frame = -1
    for frame, probability in enumerate(p for p_T in chunks for p in p_T.tolist()):
        if probability >= rule.threshold:
            start, pause = frame if start is None else start, None
        elif start is not None and probability < rule.release:
            pause = frame if pause is None else pause
            if frame + 1 - pause >= min_pause:
                yield start, pause
                start = pause = None
    if start is not None:
        yield start, frame + 1 if pause is None else pause


class _Counted:
    """Blocks on their way to a detector, and how long they were."""

    def __init__(self, blocks: Iterable[Wave]) -> None:
        self._blocks, self._num_samples = blocks, 0

    def __iter__(self) -> Iterator[Wave]:
        for wav_S in self._blocks:
            self._num_samples += len(wav_S)
            yield wav_S

    @property
    def seconds(self) -> float:
        """Of what has passed."""
        return self._num_samples / SAMPLE_RATE_HZ


class Silero:
    """Silero VAD (github.com/snakers4/silero-vad, MIT) over many frames at once.

    The published network hears one frame after the other. Here its convolutions hear all frames of
    a chunk together and its LSTM runs over them, several times faster, with the same probabilities.
    """

    _FRAME, _CONTEXT = 512, 64
    frame_s = _FRAME / SAMPLE_RATE_HZ

    def __init__(self, weights: bytes | None = None) -> None:
        """``weights``: in safetensors, by default those of the package. Raises RequestError."""
        self._network = _Network()
        self._network.load_state_dict(_renamed(load(weights or silero_weights())))
        self._network.eval()

    def probabilities(self, blocks: Iterable[Wave]) -> Iterator[Probabilities]:
        """``p_T`` for frames of 32 ms; the last is filled up with silence."""
        before = torch.zeros(self._CONTEXT)
        state: State | None = None
        for wav_S in _chunks(blocks, _CHUNK_FRAMES * self._FRAME, self._FRAME):
            heard_S = torch.cat([before, torch.from_numpy(wav_S)])
            before = heard_S[-self._CONTEXT :]
            frames_TF = heard_S.unfold(0, self._FRAME + self._CONTEXT, self._FRAME)
            with torch.inference_mode(), _one_thread():
                p_T, state = self._network(frames_TF, state)
            yield p_T.numpy()


State = tuple[Tensor, Tensor]
"""Of the LSTM: what it puts out and what it keeps."""


class _Network(nn.Module):
    """The 16 kHz network: spectrum, four convolutions within a frame, an LSTM over frames."""

    _BINS, _LOOKAHEAD = 129, 64

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 2 * self._BINS, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(self._BINS, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, frames_TF: Tensor, state: State | None) -> tuple[Tensor, State]:
        """``p_T`` of consecutive frames, and the state for those after them."""
        parts = self.stft_conv(functional.pad(frames_TF[:, None], (0, self._LOOKAHEAD), "reflect"))
        feats = (parts[:, : self._BINS].square() + parts[:, self._BINS :].square()).sqrt()
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            feats = conv(feats).relu()
        if state is None:
            state = (feats.new_zeros(1, 128), feats.new_zeros(1, 128))
        said_TD, state = self.lstm(feats[:, :, 0], state)
        return self.final_conv(said_TD.relu()[:, :, None])[:, 0, 0].sigmoid(), state


def silero_weights(package: str = "silero_vad") -> bytes:
    """The weights that come with silero-vad, whose code is not run: it sets threads for all.

    Raises RequestError when it is not installed, or is another version.
    """
    spec = importlib.util.find_spec(package)
    remedy = "pip install 'orchestrator[voice-activity]' on the nodes"
    if spec is None or spec.origin is None:
        raise RequestError(f"voice activity: silero-vad is not installed; {remedy}")
    try:
        weights = (Path(spec.origin).parent / "data/silero_vad_16k.safetensors").read_bytes()
    except FileNotFoundError:
        weights = b""
    if sha256(weights).hexdigest() != SILERO_SHA256:
        raise RequestError(f"voice activity: silero-vad has other weights than 6.2.3; {remedy}")
    return weights


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An LSTM over frames has the weights of an LSTM cell under other names."""
    return {re.sub(r"lstm_cell\.(\w+)", r"lstm.\1_l0", k): v for k, v in weights.items()}


def _chunks(blocks: Iterable[Wave], size: int, multiple: int) -> Iterator[Wave]:
    """The same samples in chunks of ``size``; the last is filled up to a multiple with zeros."""
    held: Wave = np.zeros(0, np.float32)
    for wav_S in blocks:
        held = np.concatenate([held, wav_S])
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
    if len(held):
        yield np.pad(held, (0, -len(held) % multiple))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several threads would add in another order."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
