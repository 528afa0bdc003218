"""Units must not depend on batching: padded batches against stock inference at batch size 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import HubertConfig, HubertModel

from jobs.speech.hubert import Hubert, plan_batches

NUM_CLUSTERS = 100
LENGTHS_S = (0.3, 0.55, 0.9, 1.3, 1.7, 2.2, 2.6, 3.0)

SMALL = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 4,
}
BASE_50HZ = {
    "conv_dim": (64,) * 7,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
}
BASE_25HZ = {
    "conv_dim": (64,) * 8,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2, 2),
    "num_feat_extract_layers": 8,
    "conv_pos_batch_norm": True,
}
SLIM = {
    "conv_dim": (32, 64, 128, 192, 192),
    "conv_kernel": (10, 8, 4, 4, 4),
    "conv_stride": (5, 4, 4, 2, 2),
    "num_feat_extract_layers": 5,
    "do_stable_layer_norm": True,
}
CONFIGS = {
    "base 50 Hz": {**BASE_50HZ, "feat_extract_norm": "group"},
    "mhubert 25 Hz": {**BASE_25HZ, "feat_extract_norm": "group"},
    "large": {
        **BASE_50HZ,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "conv_bias": True,
    },
    "slim layer": {**SLIM, "feat_extract_norm": "layer"},
    "slim group": {**SLIM, "feat_extract_norm": "group", "feat_proj_layer_norm": False},
}
FAILS_WHEN_PADDED = [name for name, c in CONFIGS.items() if c["feat_extract_norm"] == "group"]


def _model(config: dict[str, Any]) -> HubertModel:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = HubertModel(HubertConfig(**{**SMALL, **config})).eval()
    norm = model.encoder.pos_conv_embed.batch_norm
    if (
        norm is not None
    ):  # the statistics of a trained model: a fresh norm would hide what padding does to it
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.bias.data.normal_()
    return model


def _waves() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    waves = []
    for seconds in LENGTHS_S:
        time_s = np.arange(int(seconds * 16_000)) / 16_000
        tone = np.sin(2 * np.pi * rng.uniform(90, 250) * time_s * (1 + 0.2 * np.sin(5 * time_s)))
        envelope = 0.2 + np.abs(np.sin(2 * np.pi * rng.uniform(1, 4) * time_s))
        waves.append((0.1 * envelope * tone + 0.02 * rng.standard_normal(len(time_s))).astype("f4"))
    return waves


def _alone(model: HubertModel, waves: list[np.ndarray], layer: int) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [
            model(torch.from_numpy(w)[None], output_hidden_states=True).hidden_states[layer][0]
            for w in waves
        ]


def _stock_padded(model: HubertModel, waves: list[np.ndarray], layer: int) -> list[torch.Tensor]:
    wav_BS = torch.zeros(len(waves), max(map(len, waves)))
    for row, wave in enumerate(waves):
        wav_BS[row, : len(wave)] = torch.from_numpy(wave)
    with torch.inference_mode():
        feats_BTD = model(wav_BS, output_hidden_states=True).hidden_states[layer]
    frames = [int(model._get_feat_extract_output_lengths(len(w))) for w in waves]
    return [feats_BTD[row, :n] for row, n in enumerate(frames)]


def _miss_rate(feats: list[torch.Tensor], reference: list[torch.Tensor]) -> float:
    """Share of units that differ; the codebook is frames of the reference, so all units occur."""
    flat_ND = torch.cat(reference)
    centroids_KD = flat_ND[torch.linspace(0, len(flat_ND) - 1, NUM_CLUSTERS).long()]
    wrong = sum(
        int(
            (torch.cdist(a, centroids_KD).argmin(1) != torch.cdist(b, centroids_KD).argmin(1)).sum()
        )
        for a, b in zip(feats, reference, strict=True)
    )
    return wrong / len(flat_ND)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layer", [2, 3])
def test_padded_batches_give_the_units_of_batch_size_one(name: str, layer: int) -> None:
    model, waves = _model(CONFIGS[name]), _waves()
    reference = _alone(model, waves, layer)
    hubert = Hubert(model, layer)
    feats = hubert.features(waves)
    assert [f.shape for f in feats] == [f.shape for f in reference]
    for mine, stock in zip(feats, reference, strict=True):
        torch.testing.assert_close(mine, stock, atol=2e-5, rtol=1e-4)
    assert _miss_rate(feats, reference) == 0.0


@pytest.mark.parametrize("name", FAILS_WHEN_PADDED)
def test_plain_padding_would_give_other_units(name: str) -> None:
    model, waves = _model(CONFIGS[name]), _waves()
    assert _miss_rate(_stock_padded(model, waves, 2), _alone(model, waves, 2)) > 0.05


def test_planned_batches_give_the_units_of_one_big_batch() -> None:
    model, waves = _model(CONFIGS["mhubert 25 Hz"]), _waves()
    hubert = Hubert(model, 2)
    feats: list[torch.Tensor] = [torch.empty(0)] * len(waves)
    for batch in plan_batches([len(w) for w in waves], max_padded_samples=5 * 16_000):
        for index, feats_TD in zip(batch, hubert.features([waves[i] for i in batch]), strict=True):
            feats[index] = feats_TD
    assert _miss_rate(feats, hubert.features(waves)) == 0.0
