"""Audio seconds a second of encoders at 50 and 25 Hz, host to features on the device."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from benchmarks.encoders import HUBERT_BASE, MHUBERT_25HZ, flops, random_model
from benchmarks.gpu.device import Peak, peak, seconds_of
from benchmarks.gpu.figures import Figure, Setting
from benchmarks.gpu.unit_misses import batched
from jobs.speech.replays import Recorder
from jobs.speech.speech_encoder import Precision, SpeechEncoder, Wave
from orchestrator.quantities import SAMPLE_RATE_HZ

ROW = "encoder"
_MODELS = {"50 Hz": HUBERT_BASE, "25 Hz": MHUBERT_25HZ}
_TYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def figures(setting: Setting) -> Iterator[Figure]:
    """By frame rate, layer, precision, and whether batches are replayed as CUDA graphs."""
    peaks = {precision: peak(setting, dtype) for precision, dtype in _TYPES.items()}
    layers = setting.sized((6, 11), (2,))
    for rate, layer, precision, has_graphs in product(_MODELS, layers, _TYPES, (False, True)):
        case = f"{rate}, layer {layer}, {precision}{', graphs' if has_graphs else ''}"
        if has_graphs and setting.device != "cuda":
            yield Figure(row=ROW, case=case, value=None, unit="audio s/s")
            continue
        model = random_model(_MODELS[rate], layer, small=setting.is_tiny)
        encoder = SpeechEncoder(
            model,
            layer,
            device=setting.torch_device,
            precision=precision,
            record=Recorder() if has_graphs else None,
        )
        work = sum(flops(model.config, layer, n) for n in _frames(encoder, setting))
        yield _timed(setting, case, encoder, work, peaks[precision])


def _waves(setting: Setting) -> list[Wave]:
    return setting.waves(setting.sized(240, 3), longest_s=setting.sized(16, 1))


def _frames(encoder: SpeechEncoder, setting: Setting) -> list[int]:
    return [encoder.grid.num_frames(len(wav_S)) for wav_S in _waves(setting)]


def _timed(setting: Setting, case: str, encoder: SpeechEncoder, work: float, best: Peak) -> Figure:
    waves = _waves(setting)
    took_s = seconds_of(setting, lambda: batched(encoder, waves))
    audio_s = sum(map(len, waves)) / SAMPLE_RATE_HZ
    return Figure(
        row=ROW,
        case=case,
        value=audio_s / took_s,
        unit="audio s/s",
        share=work / took_s / best.flops_per_s,
        peak=best.name,
        note=f"batches of {encoder.max_padded_samples // SAMPLE_RATE_HZ} s",
    )
