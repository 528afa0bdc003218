"""Loading and lengths; tests/numerics/test_units_batching.py has the exactness."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HubertConfig, HubertModel

from jobs.speech.speech_encoder import (
    Precision,
    SpeechEncoder,
    has_device_alone,
    is_finite,
    is_out_of_memory,
)
from jobs.speech.transformer import View
from orchestrator.errors import RequestError
from tests.encoders import FAMILY, small_encoder, stock_features


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=48,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        conv_dim=(16,) * 7,
    )
    path = tmp_path_factory.mktemp("encoder")
    HubertModel(config).save_pretrained(path)
    return path


def _waves(*num_samples: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, n).astype(np.float32) for n in num_samples]


def test_the_loaded_layer_is_that_of_the_whole_model(folder: Path) -> None:
    (wave,) = _waves(8_000)
    model = HubertModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        stock = model(torch.from_numpy(wave)[None], output_hidden_states=True).hidden_states
    mine = SpeechEncoder.load(folder, 2).features([wave])[0]
    torch.testing.assert_close(mine, stock[2][0])
    assert not torch.allclose(mine, stock[3][0], atol=1e-2)


def test_waves_below_the_receptive_field_have_no_frames(folder: Path) -> None:
    encoder = SpeechEncoder.load(folder, 1)
    feats = encoder.features(_waves(399, 0, 400, 3_000))
    assert [tuple(f.shape) for f in feats] == [(0, 32), (0, 32), (1, 32), (9, 32)]
    assert [tuple(f.shape) for f in encoder.features(_waves(10))] == [(0, 32)]
    assert encoder.features([]) == []


def test_a_layer_the_model_does_not_have_is_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"encoder\.layer: 5 is no layer of .*; use 1\.\.4"):
        SpeechEncoder.load(folder, 5)


def test_waves_are_standardized_only_where_the_encoder_was_trained_so(
    folder: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "encoder.json").write_text(json.dumps({"normalize_waveform": True}))
    (wave,) = _waves(8_000)
    shifted = 3 * wave + np.float32(0.5)
    scaled = SpeechEncoder.load(tmp_path, 1)
    torch.testing.assert_close(
        scaled.features([wave])[0], scaled.features([shifted])[0], atol=1e-4, rtol=1e-3
    )
    expected = ((wave - wave.mean()) / wave.std()).astype(np.float32)
    torch.testing.assert_close(
        scaled.features([wave])[0],
        SpeechEncoder.load(folder, 1).features([expected])[0],
        atol=1e-4,
        rtol=1e-3,
    )


def test_reduced_precision_is_close_but_not_the_same(folder: Path) -> None:
    waves = _waves(6_000, 4_000)
    exact = SpeechEncoder.load(folder, 2).features(waves)
    reduced = SpeechEncoder.load(folder, 2, precision="bf16").features(waves)
    assert {f.dtype for f in reduced} == {torch.float32}
    assert not torch.equal(exact[0], reduced[0])
    torch.testing.assert_close(exact[0], reduced[0], atol=0.15, rtol=0.1)


@pytest.mark.parametrize("name", ["wav2vec 2.0 large", "wavlm base"])
def test_the_rest_of_the_family_is_loaded_as_what_it_is(name: str, tmp_path: Path) -> None:
    model, waves = small_encoder(name), _waves(8_000, 3_000)
    model.save_pretrained(tmp_path)
    feats = SpeechEncoder.load(tmp_path, 2).features(waves)
    for mine, stock in zip(feats, stock_features(model, waves, 2), strict=True):
        torch.testing.assert_close(mine, stock, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", FAMILY)
def test_all_of_the_family_computes_in_16_bits(name: str, precision: Precision) -> None:
    model, waves = small_encoder(name), _waves(8_000, 3_000)
    exact = SpeechEncoder(model, 2).features(waves)
    reduced = SpeechEncoder(model, 2, precision=precision).features(waves)
    for low, high in zip(reduced, exact, strict=True):
        assert torch.nn.functional.cosine_similarity(low, high).min() > 0.98


def test_gain_is_nothing_to_a_model_of_normalized_waves() -> None:
    encoder = SpeechEncoder(small_encoder("hubert large"), 2, normalize_waveform=True)
    (wave,) = _waves(16_000)
    loud, faint = encoder.features([wave, np.float32(0.05) * wave])
    torch.testing.assert_close(loud, faint, atol=1e-3, rtol=1e-3)


def _with_no_numbers() -> SpeechEncoder:
    """Features of what is loud overflow."""
    model = small_encoder("hubert large")
    model.feature_projection.projection.weight.data.fill_(float("inf"))
    return SpeechEncoder(model, 2)


def test_what_has_no_numbers_on_a_cpu_either_is_given_as_it_is() -> None:
    (feats,) = _with_no_numbers().features(_waves(8_000))
    assert not is_finite(feats)


def test_what_has_no_numbers_on_one_device_alone_is_the_devices_fault() -> None:
    faulty, sound = _with_no_numbers(), SpeechEncoder(small_encoder("hubert large"), 2)
    faulty._on_cpu = lambda: sound
    with pytest.raises(FloatingPointError, match="a second try on a CPU does not find"):
        faulty.features(_waves(8_000))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_feature_that_is_no_number_is_found(bad: float) -> None:
    feats_TD = torch.full((3, 4), 3e38)
    assert is_finite(feats_TD)
    feats_TD[1, 2] = bad
    assert not is_finite(feats_TD)


class _OfLimitedMemory(torch.nn.Module):
    """An activation that has no memory for more frames than a few."""

    def __init__(self, most_frames: int) -> None:
        super().__init__()
        self.most_frames, self.met = most_frames, list[int]()

    def forward(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        self.met.append(len(hidden_ND))
        if len(hidden_ND) > self.most_frames:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return torch.nn.functional.gelu(hidden_ND)


def _limited(most_frames: int) -> tuple[SpeechEncoder, _OfLimitedMemory]:
    model, activation = small_encoder("hubert base"), _OfLimitedMemory(most_frames)
    model.encoder.layers[0].feed_forward.intermediate_act_fn = activation
    return SpeechEncoder(model, 1), activation


def test_a_batch_that_memory_is_too_small_for_is_halved_until_it_fits() -> None:
    waves = _waves(16_000, 12_000, 8_000, 8_000, 3_000)  # 49, 37, 24, 24 and 9 frames
    encoder, activation = _limited(50)
    expected = SpeechEncoder(small_encoder("hubert base"), 1).features(waves)
    for mine, alone in zip(encoder.features(waves), expected, strict=True):
        torch.testing.assert_close(mine, alone, atol=2e-5, rtol=1e-4)
    assert activation.met == [143, 86, 49, 37, 57, 24, 33]
    activation.met.clear()
    encoder.features(waves)  # what did not fit before is not tried again
    assert activation.met == [49, 37, 24, 33]


def test_views_of_a_batch_that_memory_is_too_small_for_are_measured_in_parts() -> None:
    waves = _waves(16_000, 12_000, 8_000, 8_000, 3_000)
    encoder, activation = _limited(50)
    (whole,) = SpeechEncoder(small_encoder("hubert base"), 1).views(waves, lambda f_ND: f_ND)
    parts = encoder.views(waves, lambda feats_ND: feats_ND)
    assert activation.met == [143, 86, 49, 37, 57, 24, 33]
    for view, feats_ND in whole.items():
        mine_ND = torch.cat([part[view] for part in parts])
        torch.testing.assert_close(mine_ND, feats_ND, atol=2e-5, rtol=1e-4)
    activation.met.clear()
    encoder.views(waves, len)
    assert activation.met == [49, 37, 24, 33]


@pytest.mark.parametrize("name", ["hubert base", "hubert large", "wavlm base"])
def test_views_of_one_pass_are_those_of_a_pass_for_each(name: str) -> None:
    """To the bit."""
    waves = _waves(16_000, 399, 12_000, 3_000)
    wanted = [View(2), View(1), View(2, "before_residual"), View(3, "before_residual")]
    wanted += [View(2, "final_norm")] if name == "hubert large" else []
    found = SpeechEncoder(small_encoder(name), 3).features_of(waves, wanted)
    assert list(found) == wanted
    for view, feats in found.items():
        alone = SpeechEncoder(small_encoder(name), view.layer, output=view.output).features(waves)
        assert [tuple(f.shape) for f in feats] == [tuple(f.shape) for f in alone]
        assert all(torch.equal(one, other) for one, other in zip(feats, alone, strict=True))


def test_layers_above_the_highest_wanted_are_not_computed() -> None:
    model, activation = small_encoder("hubert base"), _OfLimitedMemory(1_000)
    model.encoder.layers[2].feed_forward.intermediate_act_fn = activation
    encoder = SpeechEncoder(model, 3)
    encoder.features_of(_waves(8_000), [View(1), View(2)])
    assert not activation.met
    encoder.features_of(_waves(8_000), [View(1), View(3)])
    assert activation.met == [24]


def test_a_view_that_the_model_does_not_have_is_refused() -> None:
    encoder = SpeechEncoder(small_encoder("hubert base"), 2)
    with pytest.raises(RequestError, match=r"encoder\.output: .*has no norm at its end"):
        encoder.features_of(_waves(8_000), [View(1), View(2, "final_norm")])


def test_what_has_no_numbers_has_them_below() -> None:
    model = small_encoder("hubert base")
    model.encoder.layers[1].feed_forward.output_dense.weight.data.fill_(float("inf"))
    found = SpeechEncoder(model, 2).features_of(_waves(8_000), [View(1), View(2)])
    assert [is_finite(*feats) for feats in found.values()] == [True, False]


def test_what_a_cpu_has_no_memory_for_now_it_may_have_later() -> None:
    encoder, _ = _limited(30)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        encoder.features(_waves(8_000, 16_000, 3_000))
    assert not has_device_alone(torch.device("cpu"))


def test_other_errors_of_a_device_halve_nothing() -> None:
    assert is_out_of_memory(RuntimeError("CUDNN_STATUS_ALLOC_FAILED"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))


def _all_of(model: torch.nn.Module) -> dict[str, object]:
    """Each part and weight of a model, as it is."""
    weights = {
        name: (id(w), w.dtype, w.requires_grad, w.detach().clone().flatten().tolist()[:9])
        for name, w in model.named_parameters()
    }
    return weights | {f"{name}.training": part.training for name, part in model.named_modules()}


@pytest.mark.parametrize("name", FAMILY)
def test_the_model_that_an_encoder_is_made_of_stays_as_it_is(name: str) -> None:
    model = small_encoder(name)
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)):
        norm.train()
    before = _all_of(model)
    SpeechEncoder(model, 2, precision="bf16").features(_waves(3_000))
    assert _all_of(model) == before
