"""Units must not depend on batching: any batch against stock inference at batch size 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from jobs.speech.grid import plan_batches
from jobs.speech.lloyd import nearest
from jobs.speech.speech_encoder import SpeechEncoder
from jobs.speech.transformer import View
from orchestrator.errors import RequestError
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


def _stock_views(model: Any, wave: np.ndarray) -> dict[View, torch.Tensor]:
    """What transformers computes on its way, and in the end when it is cut after a layer."""
    is_pre_norm, layers = model.config.do_stable_layer_norm, model.encoder.layers
    wav_BS, norm = torch.from_numpy(wave)[None], model.encoder.layer_norm
    if is_pre_norm:
        model.encoder.layer_norm = torch.nn.Identity()  # which it adds to the last state
    with torch.inference_mode():
        states = model(wav_BS, output_hidden_states=True).hidden_states
    model.encoder.layer_norm = norm
    found = {View(number): state[0] for number, state in enumerate(states) if number}
    for number in range(1, len(layers) + 1):
        model.encoder.layers = layers[:number]
        with torch.inference_mode(), _caught(layers[number - 1].feed_forward) as added:
            last = model(wav_BS).last_hidden_state
        found[View(number, "before_residual")] = added[0][0]
        if is_pre_norm:
            found[View(number, "final_norm")] = last[0]
    return found


@contextmanager
def _caught(module: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """What a module gives."""
    given: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda _module, _args, out: given.append(out))
    yield given
    hook.remove()


@pytest.mark.parametrize("all_at_once", [False, True])
@pytest.mark.parametrize("name", FAMILY)
def test_every_view_is_that_of_transformers(name: str, all_at_once: bool) -> None:
    (wave,) = speechlike(1.3)
    stock = _stock_views(small_encoder(name), wave)
    assert len(stock) == (9 if View(1, "final_norm") in stock else 6)
    (found,) = SpeechEncoder(small_encoder(name), 3, all_at_once=all_at_once).views(
        [wave, wave[:100]], lambda feats_ND: feats_ND
    )
    assert found.keys() == stock.keys()
    for view, feats_ND in stock.items():
        encoder = SpeechEncoder(
            small_encoder(name), view.layer, output=view.output, all_at_once=all_at_once
        )
        torch.testing.assert_close(encoder.features([wave])[0], feats_ND, atol=5e-5, rtol=1e-4)
        torch.testing.assert_close(found[view], feats_ND, atol=5e-5, rtol=1e-4)


def test_views_are_not_alike() -> None:
    """What the test above is about tells them apart."""
    (wave,) = speechlike(1.3)
    feats = list(_stock_views(small_encoder("hubert large"), wave).values())
    for number, one in enumerate(feats):
        for other in feats[:number]:
            assert (one - other).abs().mean() > 0.05


def test_a_model_without_a_norm_at_its_end_has_none() -> None:
    with pytest.raises(RequestError, match=r"encoder\.output: .*has no norm at its end"):
        SpeechEncoder(small_encoder("hubert base"), 2, output="final_norm")


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
