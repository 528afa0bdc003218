"""How many units differ from those of transformers' features, one wave at a time in fp32.

HuBERT base to layer 6 in its real shape, random weights, a codebook fitted on other waves: those
that it was fitted on lie nearer to its centroids than any that are to come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.encoders import HUBERT_BASE, hidden, random_model
from benchmarks.gpu.figures import Figure, Setting
from jobs.speech.grid import plan_batches
from jobs.speech.lloyd import BlocksInMemory, fit, nearest
from jobs.speech.speech_encoder import SpeechEncoder

ROW = "units"
LAYER = 6
_LEAST_SAMPLES = 400
"""Of one frame."""


def figures(setting: Setting) -> Iterator[Figure]:
    """Miss rates of batches and of precisions."""
    layer = setting.sized(LAYER, 2)
    model = random_model(HUBERT_BASE, layer, small=setting.is_tiny).to(setting.torch_device)
    waves = setting.waves(setting.sized(300, 24), longest_s=setting.sized(16, 2))
    waves = [wav_S for wav_S in waves if len(wav_S) > _LEAST_SAMPLES]
    encoder = SpeechEncoder(model, layer, device=setting.torch_device)  # it forbids TF32
    heard, waves = waves[::3], [wav_S for n, wav_S in enumerate(waves) if n % 3]
    reference_ND = _alone(setting, model, layer, waves)
    blocks = BlocksInMemory([_alone(setting, model, layer, heard).cpu()])
    codebook = fit(blocks, setting.sized(500, 50), seed=0)
    centroids_KD = codebook.centroids.to(setting.torch_device)

    def missed(case: str, feats_ND: Tensor) -> Figure:
        return _missed(case, feats_ND, reference_ND, centroids_KD)

    yield missed("fp32, alone", torch.cat([encoder.features([w])[0] for w in waves]))
    yield missed("fp32, batches", batched(encoder, waves))
    for precision in ("bf16", "fp16"):
        low = SpeechEncoder(model, layer, device=setting.torch_device, precision=precision)
        yield missed(f"{precision}, batches", batched(low, waves))
    yield _of_tf32(setting, missed, encoder, waves)


def _alone(setting: Setting, model: Any, layer: int, waves: Sequence[Any]) -> Tensor:
    """``feats_ND`` as transformers computes them, one wave at a time."""
    tensors = (torch.from_numpy(wav_S)[None].to(setting.torch_device) for wav_S in waves)
    with torch.inference_mode():
        return torch.cat([hidden(model, wav_1S, layer)[0] for wav_1S in tensors])


def batched(
    encoder: SpeechEncoder, waves: Sequence[Any], max_padded_samples: int | None = None
) -> Tensor:
    """``feats_ND`` of waves in their order, computed in batches; by default, the stages'."""
    most = max_padded_samples or encoder.max_padded_samples
    feats = [torch.empty(0)] * len(waves)
    for batch in plan_batches([len(w) for w in waves], most):
        for i, feats_TD in zip(batch, encoder.features([waves[i] for i in batch]), strict=True):
            feats[i] = feats_TD
    return torch.cat(feats)


def _of_tf32(setting: Setting, missed: Any, encoder: SpeechEncoder, waves: Sequence[Any]) -> Figure:
    """On a device that has it: it is never used otherwise."""
    if setting.device != "cuda" or torch.cuda.get_device_capability()[0] < 8:
        return Figure(row=ROW, case="tf32, batches", value=None, unit="% missed")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        feats_ND = batched(encoder, waves)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return missed("tf32, batches", feats_ND)


def _missed(case: str, feats_ND: Tensor, reference_ND: Tensor, centroids_KD: Tensor) -> Figure:
    expected, found = nearest(reference_ND, centroids_KD), nearest(feats_ND, centroids_KD)
    is_other_N = found.index_N != expected.index_N
    clear = int((is_other_N & ~(found.is_tie_N | expected.is_tie_N)).sum())
    return Figure(
        row=ROW,
        case=case,
        value=100 * float(is_other_N.double().mean()),
        unit="% missed",
        note=f"{int(is_other_N.sum())} of {len(feats_ND)}, {clear} of them no ties",
    )
