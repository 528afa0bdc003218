"""Architectures of the HuBERT family, how much work they are, and waves to give them."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import (
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from orchestrator.quantities import SAMPLE_RATE_HZ

_STRIDES_25HZ = {
    "conv_dim": (512,) * 8,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2, 2),
    "num_feat_extract_layers": 8,
    "conv_pos_batch_norm": True,
}
_LARGE = {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}
HUBERT_BASE, MHUBERT_25HZ = "hubert base", "mhubert 25 Hz"
FAMILY: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    HUBERT_BASE: (HubertModel, HubertConfig, {}),  # and mHuBERT-147
    "hubert large": (HubertModel, HubertConfig, _LARGE),
    MHUBERT_25HZ: (HubertModel, HubertConfig, _STRIDES_25HZ),
    "wav2vec 2.0 base": (Wav2Vec2Model, Wav2Vec2Config, {}),
    "wav2vec 2.0 large": (Wav2Vec2Model, Wav2Vec2Config, _LARGE),
    "wavlm base": (WavLMModel, WavLMConfig, {}),
    "wavlm large": (WavLMModel, WavLMConfig, {**_LARGE, "conv_bias": False}),
}
"""By name: classes of transformers, and what differs from their defaults in the real shape."""
SMALL = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 4,
}
"""What makes any of them small, with ``small_convolutions``."""


def small_convolutions(about: dict[str, Any], channels: int = 64) -> dict[str, Any]:
    """Few channels in as many convolutions as an architecture has."""
    return {"conv_dim": (channels,) * len(about.get("conv_dim", HubertConfig().conv_dim))}


def random_model(name: str, num_layers: int, *, small: bool = False) -> Any:
    """An architecture with random weights, the same each time."""
    torch.manual_seed(0)
    model_class, config_class, about = FAMILY[name]
    shape = {**about, **SMALL, **small_convolutions(about)} if small else about
    config = config_class(**{**shape, "num_hidden_layers": num_layers})
    return model_class(config).eval().requires_grad_(False)


def hidden(model: Any, wav_BS: Tensor, layer: int, **options: Any) -> Tensor:
    """``feats_BTD`` of a layer, as transformers computes it."""
    found: Tensor = model(wav_BS, output_hidden_states=True, **options).hidden_states[layer]
    return found


def flops(config: Any, layer: int, num_frames: int) -> float:
    """Operations of one wave up to a layer: products alone, multiplications and additions."""
    width = config.hidden_size
    steps = [prod(config.conv_stride[n + 1 :]) for n in range(len(config.conv_stride))]
    channels = zip((1, *config.conv_dim[:-1]), config.conv_dim, config.conv_kernel, strict=True)
    convolutions = sum(
        n * num_in * num_out * kernel
        for n, (num_in, num_out, kernel) in zip(steps, channels, strict=True)
    )
    position = width * width // config.num_conv_pos_embedding_groups
    of_layer = 4 * width**2 + 2 * width * config.intermediate_size + 2 * num_frames * width
    before = config.conv_dim[-1] * width + position * config.num_conv_pos_embeddings
    return 2.0 * num_frames * (convolutions + before + layer * of_layer)


def noise_of(rng: np.random.Generator, seconds: float) -> npt.NDArray[np.float32]:
    """Noise with the ups and downs of syllables."""
    time_s = np.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    loudness = np.abs(np.sin(2 * np.pi * 2 * time_s)) ** 2
    noise = np.convolve(rng.normal(0, 1, len(time_s)), np.hanning(9), "same")
    return (0.05 * loudness * noise).astype(np.float32)
