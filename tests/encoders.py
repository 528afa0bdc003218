"""Small encoders of every architecture of the family, with weights that hide nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import HubertConfig, HubertModel

from benchmarks import encoders

SLIM = {
    "conv_dim": (32, 64, 128, 192, 192),
    "conv_kernel": (10, 8, 4, 4, 4),
    "conv_stride": (5, 4, 4, 2, 2),
    "num_feat_extract_layers": 5,
    "do_stable_layer_norm": True,
}
FAMILY: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    name: (*classes, {**about, **encoders.SMALL, **encoders.small_convolutions(about)})
    for name, (*classes, about) in encoders.FAMILY.items()
} | {
    "slim hubert": (HubertModel, HubertConfig, {**SLIM, "feat_extract_norm": "layer"}),
    "slim hubert without a norm": (
        HubertModel,
        HubertConfig,
        {**SLIM, "feat_proj_layer_norm": False},
    ),
}
"""By name: classes of transformers, and what makes the architecture."""


def small_encoder(name: str, **more: Any) -> Any:
    """A model of ``FAMILY``, its norms and biases as far from nothing as trained ones are."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model_class, config_class, about = FAMILY[name]
    model = model_class(config_class(**{**encoders.SMALL, **about, **more})).eval()
    for weight in model.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    norm = getattr(model.encoder.pos_conv_embed, "batch_norm", None)
    if norm is not None:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model


def speechlike(*seconds: float, seed: int = 0) -> list[np.ndarray]:
    """Waves at 16 kHz of gliding tones with rests and noise."""
    rng = np.random.default_rng(seed)
    waves = []
    for length_s in seconds:
        time_s = np.arange(int(length_s * 16_000)) / 16_000
        tone = np.sin(2 * np.pi * rng.uniform(90, 250) * time_s * (1 + 0.2 * np.sin(5 * time_s)))
        envelope = 0.2 + np.abs(np.sin(2 * np.pi * rng.uniform(1, 4) * time_s))
        waves.append((0.1 * envelope * tone + 0.02 * rng.standard_normal(len(time_s))).astype("f4"))
    return waves


def stock_features(model: Any, waves: list[np.ndarray], layer: int) -> list[torch.Tensor]:
    """What transformers gives for each wave alone."""
    with torch.inference_mode():
        return [
            model(torch.from_numpy(wave)[None], output_hidden_states=True).hidden_states[layer][0]
            for wave in waves
        ]
