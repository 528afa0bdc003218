"""Runs a HuBERT over padded batches so that every utterance gets the features it would get alone.

In: waves of mixed length. Out: ``feats_TD`` per wave, equal to Hugging Face's
``hidden_states[layer]`` at batch size 1. Stock batched inference is not: the first convolution's
norm takes statistics over time, BatchNorm turns padding into something else than zero before the
positional convolution, and attention sees padded keys. So here each convolution's valid length is
followed, statistics are over valid samples only, and what lies beyond is zeroed again.

Shapes: B batch, S samples at 16 kHz, T frames, C channels, D features.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from jobs.weights import load_whole
from orchestrator.errors import RequestError
from orchestrator.quantities import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from transformers import HubertModel

Wave = npt.NDArray[np.float32]
Precision = Literal["fp32", "bf16", "fp16"]

MAX_PADDED_SAMPLES = {"cuda": 60 * SAMPLE_RATE_HZ, "cpu": 8 * SAMPLE_RATE_HZ}
"""Samples of one padded batch by the kind of device, as batches decide rounding: what keeps an
accelerator busy takes a CPU's cache twice as long."""

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_WAVE_EPS = 1e-7  # of the zero-mean, unit-variance rule in transformers' Wav2Vec2FeatureExtractor


def plan_batches(num_samples: Sequence[int], max_padded_samples: int) -> list[list[int]]:
    """Indices of utterances grouped into batches of similar length, longest first.

    A pure function of the lengths; one longer than ``max_padded_samples`` is a batch of its own.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(num_samples)), key=lambda i: (-num_samples[i], i)):
        longest = num_samples[batches[-1][0]] if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= max_padded_samples:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


class Grid(NamedTuple):
    """How frames lie on samples."""

    hop: int
    """Samples from one frame to the next."""
    field: int
    """Samples one frame is computed from."""

    def num_frames(self, num_samples: int) -> int:
        """Whole frames in a wave; 0 when it is shorter than one frame's field."""
        return max(0, (num_samples - self.field) // self.hop + 1)

    def num_samples(self, num_frames: int) -> int:
        """Samples that hold exactly ``num_frames``."""
        return (num_frames - 1) * self.hop + self.field

    def trimmed(self, num_samples: int) -> int:
        """Samples of the whole hops in a wave."""
        return num_samples // self.hop * self.hop


def grid_of(kernels: Sequence[int], strides: Sequence[int]) -> Grid:
    """The grid of a stack of unpadded convolutions."""
    hop, field = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    return Grid(hop, field)


class Hubert:
    """An encoder cut after one layer, on one device."""

    def __init__(
        self,
        model: HubertModel,
        layer: int,
        *,
        device: torch.device | None = None,
        precision: Precision = "fp32",
        normalize_waveform: bool = False,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.dim: int = model.config.hidden_size
        self.grid = grid_of(model.config.conv_kernel, model.config.conv_stride)
        self._precision = precision
        self._normalize_waveform = normalize_waveform
        self._net = _LengthAware(model, layer).eval().requires_grad_(False).to(self.device)
        if self.device.type == "cuda":
            _forbid_inexact_kernels()

    @classmethod
    def load(
        cls,
        folder: Path,
        layer: int,
        *,
        device: torch.device | None = None,
        precision: Precision = "fp32",
    ) -> Hubert:
        """The encoder in ``folder`` up to ``layer``.

        Reads config.json, model.safetensors and, where it is there, encoder.json.
        Raises RequestError when it has no such layer, or other weights than its config describes.
        """
        from transformers import HubertModel  # takes seconds, which drivers need not spend

        config = json.loads((folder / "config.json").read_text())
        if not 1 <= layer <= config["num_hidden_layers"]:
            raise RequestError(
                f"encoder.layer: {layer} is no layer of {folder}; "
                f"use 1..{config['num_hidden_layers']}"
            )
        notes = folder / "encoder.json"
        wants_norm = notes.exists() and json.loads(notes.read_text()).get("normalize_waveform")
        model = load_whole(
            HubertModel,
            folder,
            where="encoder.model",
            num_hidden_layers=layer,  # deeper layers cost time and memory, and change nothing
            dtype=torch.float32,
            use_safetensors=True,
        )
        return cls(
            model, layer, device=device, precision=precision, normalize_waveform=bool(wants_norm)
        )

    @property
    def max_padded_samples(self) -> int:
        """Of a batch."""
        return MAX_PADDED_SAMPLES[self.device.type]

    def features(self, waves: Sequence[Wave]) -> list[Tensor]:
        """``feats_TD`` of each wave in fp32, on the encoder's device, as if it were alone."""
        long_enough = [i for i, wav_S in enumerate(waves) if self.grid.num_frames(len(wav_S))]
        feats = [torch.zeros(0, self.dim, device=self.device) for _ in waves]
        if not long_enough:
            return feats
        wav_BS, lengths = self._padded([waves[i] for i in long_enough])
        lower = torch.autocast(
            self.device.type, _AUTOCAST.get(self._precision), enabled=self._precision in _AUTOCAST
        )
        with torch.inference_mode(), lower:
            feats_BTD = self._net(wav_BS, lengths).float()
        for row, i in enumerate(long_enough):
            feats[i] = feats_BTD[row, : self.grid.num_frames(lengths[row])]
        return feats

    def _padded(self, waves: Sequence[Wave]) -> tuple[Tensor, list[int]]:
        lengths = [len(wav_S) for wav_S in waves]
        on_gpu = self.device.type == "cuda"
        wav_BS = torch.zeros(len(waves), max(lengths), pin_memory=on_gpu)
        for row, wav_S in enumerate(waves):
            scaled_S = _standardized(wav_S) if self._normalize_waveform else wav_S
            wav_BS[row, : len(wav_S)] = torch.from_numpy(np.ascontiguousarray(scaled_S))
        return wav_BS.to(self.device, non_blocking=on_gpu), lengths


def _standardized(wav_S: Wave) -> Wave:
    scaled_S: Wave = (wav_S - wav_S.mean()) / np.sqrt(wav_S.var() + _WAVE_EPS)
    return scaled_S.astype(np.float32)


def _forbid_inexact_kernels() -> None:
    """Units must not depend on the kernel cuDNN finds fastest today, nor on TF32's rounding."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


class _LengthAware(nn.Module):
    """HubertModel's forward pass (transformers, modeling_hubert.py) that knows each row's length.

    For layer L it gives ``hidden_states[L]``: the output of layer L before the final norm that
    pre-norm models apply at the very end, as in fairseq's ``extract_features(output_layer=L)``.
    """

    def __init__(self, model: HubertModel, layer: int) -> None:
        super().__init__()
        self.convs: Any = model.feature_extractor.conv_layers
        self.projection = model.feature_projection
        self.position: Any = model.encoder.pos_conv_embed
        norm_comes_first = not model.config.do_stable_layer_norm
        self.input_norm = model.encoder.layer_norm if norm_comes_first else nn.Identity()
        self.layers = model.encoder.layers[:layer]

    def forward(self, wav_BS: Tensor, lengths: Sequence[int]) -> Tensor:
        hidden_BCT, valid_BT = self._convolved(wav_BS, lengths)
        hidden_BTD: Tensor = self.projection(hidden_BCT.transpose(1, 2))
        hidden_BTD = _zeroed(hidden_BTD, valid_BT, time_dim=1)
        hidden_BTD = self.input_norm(hidden_BTD + self._positions(hidden_BTD, valid_BT))
        mask_B11T = None if valid_BT is None else valid_BT[:, None, None, :]
        for layer in self.layers:
            hidden_BTD = layer(hidden_BTD, attention_mask=mask_B11T)
        return hidden_BTD

    def _convolved(self, wav_BS: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """The front end's output, and which of its frames are real: None where all are."""
        hidden_BCT, valid_BT = wav_BS[:, None], None
        lengths_B = torch.tensor(lengths, device=wav_BS.device)
        padded = len(set(lengths)) > 1
        for block in self.convs:
            hidden_BCT = block.conv(hidden_BCT)
            lengths_B = (lengths_B - block.conv.kernel_size[0]) // block.conv.stride[0] + 1
            if padded:
                valid_BT = (
                    torch.arange(hidden_BCT.shape[2], device=wav_BS.device) < lengths_B[:, None]
                )
            hidden_BCT = block.activation(_conv_norm(block, hidden_BCT, lengths_B, valid_BT))
            hidden_BCT = _zeroed(hidden_BCT, valid_BT, time_dim=2)
        return hidden_BCT, valid_BT

    def _positions(self, hidden_BTD: Tensor, valid_BT: Tensor | None) -> Tensor:
        position, hidden_BDT = self.position, hidden_BTD.transpose(1, 2)
        if position.batch_norm is not None:
            hidden_BDT = _zeroed(position.batch_norm(hidden_BDT), valid_BT, time_dim=2)
        hidden_BDT = position.activation(position.padding(position.conv(hidden_BDT)))
        positions_BTD: Tensor = hidden_BDT.transpose(1, 2)
        return positions_BTD


def _conv_norm(
    block: nn.Module, hidden_BCT: Tensor, lengths_B: Tensor, valid_BT: Tensor | None
) -> Tensor:
    norm = getattr(block, "layer_norm", None)
    if isinstance(norm, nn.LayerNorm):
        hidden_BCT = norm(hidden_BCT.transpose(1, 2)).transpose(1, 2)
    elif norm is not None and valid_BT is None:
        hidden_BCT = norm(hidden_BCT)
    elif norm is not None and valid_BT is not None:
        hidden_BCT = _norm_over_valid(norm, hidden_BCT, lengths_B, valid_BT)
    return hidden_BCT


def _norm_over_valid(
    norm: nn.GroupNorm, hidden_BCT: Tensor, lengths_B: Tensor, valid_BT: Tensor
) -> Tensor:
    """GroupNorm with one channel a group, its statistics over each row's valid samples only."""
    hidden_BCT = hidden_BCT.float()  # as autocast does for the stock norm
    valid_B1T, length_B11 = valid_BT[:, None], lengths_B[:, None, None]
    mean_BC1 = hidden_BCT.masked_fill(~valid_B1T, 0).sum(2, keepdim=True) / length_B11
    centred_BCT = (hidden_BCT - mean_BC1).masked_fill(~valid_B1T, 0)
    var_BC1 = centred_BCT.square().sum(2, keepdim=True) / length_B11
    scale_BC1 = torch.rsqrt(var_BC1 + norm.eps) * norm.weight[:, None]
    return centred_BCT * scale_BC1 + norm.bias[:, None]


def _zeroed(hidden: Tensor, valid_BT: Tensor | None, *, time_dim: int) -> Tensor:
    if valid_BT is None:
        return hidden
    return hidden.masked_fill(~valid_BT.unsqueeze(1 if time_dim == 2 else 2), 0)
