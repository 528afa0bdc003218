"""Units must not depend on batching: any batch against stock inference at batch size 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from jobs.speech.grid import plan_batches
from jobs.speech.lloyd import nearest
from jobs.speech.speech_encoder import SpeechEncoder
from tests.encoders import FAMILY, small_encoder, speechlike, stock_features

NUM_CLUSTERS = 100
LENGTHS_S = (0.1, 0.3, 0.55, 0.9, 1.3, 1.7, 2.2, 3.0, 30.0)
SEEN_WHEN_PADDED = [
    name for name, (*_, about) in FAMILY.items() if about.get("feat_extract_norm") != "layer"
]


def _padded(model: Any, waves: list[np.ndarray], layer: int) -> list[torch.Tensor]:
    """What transformers gives for one batch of all, padded with zeros."""
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
    is_other_N = nearest(torch.cat(feats), centroids_KD)[0] != nearest(flat_ND, centroids_KD)[0]
    return is_other_N.double().mean().item()


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("layer", [2, 3])
def test_batches_give_the_units_of_batch_size_one(name: str, layer: int) -> None:
    model, waves = small_encoder(name), speechlike(*LENGTHS_S)
    if layer == 3 and model.config.do_stable_layer_norm:
        model.encoder.layer_norm = torch.nn.Identity()  # which transformers adds to the last one
    reference = stock_features(model, waves, layer)
    feats = SpeechEncoder(model, layer).features(waves)
    assert [f.shape for f in feats] == [f.shape for f in reference]
    for mine, stock in zip(feats, reference, strict=True):
        torch.testing.assert_close(mine, stock, atol=5e-5, rtol=1e-4)
    assert _miss_rate(feats, reference) == 0.0


@pytest.mark.parametrize("name", SEEN_WHEN_PADDED)
def test_plain_padding_would_give_other_units(name: str) -> None:
    model, waves = small_encoder(name), speechlike(0.3, 0.55, 0.9, 1.3, 1.7, 2.2, 2.6, 3.0)
    assert _miss_rate(_padded(model, waves, 2), stock_features(model, waves, 2)) > 0.05


@pytest.mark.parametrize("name", FAMILY)
def test_a_wave_has_the_same_bytes_in_every_batch(name: str) -> None:
    encoder, waves = (
        SpeechEncoder(small_encoder(name), 2),
        speechlike(*(0.7 + 0.1 * n for n in range(32))),
    )
    alone = [encoder.features([wave])[0] for wave in waves]
    for batch in plan_batches([len(w) for w in waves], max_padded_samples=20 * 16_000):
        for index, feats_TD in zip(batch, encoder.features([waves[i] for i in batch]), strict=True):
            torch.testing.assert_close(feats_TD, alone[index], atol=2e-5, rtol=1e-4)
