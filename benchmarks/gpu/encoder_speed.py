"""Audio seconds a second of encoders at 50 and 25 Hz, host to features on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
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
_BATCHES_S = (15, 240)
"""Besides those that the stages have."""


def figures(setting: Setting) -> Iterator[Figure]:
    """By frame rate, layer, precision, and whether batches are replayed as CUDA graphs."""
    peaks = {precision: peak(setting, dtype) for precision, dtype in _TYPES.items()}
    waves = setting.waves(setting.sized(240, 3), longest_s=setting.sized(16, 1))
    for rate, layer in product(_MODELS, setting.sized((6, 11), (2,))):
        model = random_model(_MODELS[rate], layer, small=setting.is_tiny)
        for precision, has_graphs in product(_TYPES, (False, True)):
            case = f"{rate}, layer {layer}, {precision}{', graphs' if has_graphs else ''}"
            if has_graphs and setting.device != "cuda":
                yield Figure(row=ROW, case=case, value=None, unit="audio s/s")
                continue
            record = Recorder() if has_graphs else None
            encoder = SpeechEncoder(
                model, layer, device=setting.torch_device, precision=precision, record=record
            )
            work = sum(flops(model.config, layer, encoder.grid.num_frames(len(w))) for w in waves)
            timed = partial(_timed, setting, case, encoder, waves, work, peaks[precision])
            yield timed("", encoder.max_padded_samples // SAMPLE_RATE_HZ)
            if precision == "bf16" and not has_graphs:
                yield from (timed(f", batches of {n} s", n) for n in _BATCHES_S)


def _timed(
    setting: Setting,
    case: str,
    encoder: SpeechEncoder,
    waves: Sequence[Wave],
    work: float,
    best: Peak,
    of: str,
    batch_s: int,
) -> Figure:
    took_s = seconds_of(setting, lambda: batched(encoder, waves, batch_s * SAMPLE_RATE_HZ))
    return Figure(
        row=ROW,
        case=case + of,
        value=sum(map(len, waves)) / SAMPLE_RATE_HZ / took_s,
        unit="audio s/s",
        share=work / took_s / best.flops_per_s,
        peak=best.name,
        note=f"batches of {batch_s} s",
    )
