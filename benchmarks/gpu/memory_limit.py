"""What the encoder does where a batch does not fit the memory: halves of it, until they do.

A GPU may give no more than what one wave needs, and half as much again. On a CPU, whose kernel ends
processes rather than say so, an activation refuses to take more frames than one wave has.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from benchmarks.encoders import HUBERT_BASE, random_model
from benchmarks.gpu.figures import Figure, Setting
from jobs.speech import speech_encoder
from jobs.speech.speech_encoder import SpeechEncoder, Wave
from orchestrator.errors import RequestError

ROW = "memory"
_NUM_WAVES = 16
_TOLERANCE = 1e-3


class LimitedActivation(nn.Module):
    """GELU that has memory for so many frames, and notes how many it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.most_frames: int | None = None
        self.met: list[int] = []

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """Raises torch.OutOfMemoryError for more."""
        self.met.append(len(hidden_ND))
        if self.most_frames is not None and len(hidden_ND) > self.most_frames:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return nn.functional.gelu(hidden_ND)


def figures(setting: Setting) -> Iterator[Figure]:
    """A batch that is halved, which must change nothing, and a window that does not fit at all."""
    layer = setting.sized(6, 2)
    model, activation = random_model(HUBERT_BASE, layer, small=setting.is_tiny), LimitedActivation()
    model.encoder.layers[0].feed_forward.intermediate_act_fn = activation
    encoder = SpeechEncoder(model, layer, device=setting.torch_device)
    seconds = setting.sized(15, 1)
    waves = _NUM_WAVES * _wave(setting, seconds)
    expected = torch.cat(encoder.features(waves)).cpu()
    with _limited(setting, encoder, activation, waves[0]):
        with _halvings() as said:
            started = time.perf_counter()
            found = torch.cat(encoder.features(waves)).cpu()
            took_s = time.perf_counter() - started
        refusal = _refusal(encoder, _wave(setting, 40 * seconds))
    torch.testing.assert_close(found, expected, atol=_TOLERANCE, rtol=_TOLERANCE)
    if not said or not refusal:
        raise AssertionError(f"halved {len(said)} times, then said {refusal!r}: was it limited?")
    case = f"batch of {len(waves)} in memory for one"
    yield Figure(row=ROW, case=case, value=took_s, unit="s", note=f"halved {len(said)} times")
    yield Figure(row=ROW, case="window that is too long", value=None, unit="", note=refusal)


def _wave(setting: Setting, seconds: float) -> list[Wave]:
    return setting.waves(seconds, longest_s=10 * seconds)[:1]


def _refusal(encoder: SpeechEncoder, waves: list[Wave]) -> str:
    try:
        encoder.features(waves)
    except (RequestError, torch.OutOfMemoryError) as error:  # of a CPU, the allocator's own
        return str(error)
    return ""


@contextmanager
def _halvings() -> Iterator[list[str]]:
    """What the encoder says of them."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    speech_encoder.log.addHandler(handler)
    try:
        yield said
    finally:
        speech_encoder.log.removeHandler(handler)


@contextmanager
def _limited(
    setting: Setting, encoder: SpeechEncoder, activation: LimitedActivation, wav_S: Wave
) -> Iterator[None]:
    """Memory for little more than one wave."""
    if setting.device == "cpu":
        activation.most_frames = encoder.grid.num_frames(len(wav_S))
        yield
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    encoder.features([wav_S])
    most = 1.5 * torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, most / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
