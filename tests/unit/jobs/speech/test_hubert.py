"""Batches, lengths and loading; tests/numerics/test_units_batching.py has the exactness."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HubertConfig, HubertModel

from jobs.speech.hubert import Hubert, grid_of, plan_batches
from orchestrator.errors import RequestError

KERNELS_50HZ, STRIDES_50HZ = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
KERNELS_25HZ, STRIDES_25HZ = (*KERNELS_50HZ, 2), (*STRIDES_50HZ, 2)


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


def test_batches_hold_similar_lengths_within_the_limit() -> None:
    assert plan_batches([10, 40, 20, 40, 100, 11], max_padded_samples=80) == [
        [4],
        [1, 3],
        [2, 5, 0],
    ]


def test_batches_of_nothing() -> None:
    assert plan_batches([], 80) == []


@pytest.mark.parametrize(
    ("kernels", "strides", "field", "hop"),
    [(KERNELS_50HZ, STRIDES_50HZ, 400, 320), (KERNELS_25HZ, STRIDES_25HZ, 720, 640)],
)
def test_receptive_field_and_hop(
    kernels: tuple[int, ...], strides: tuple[int, ...], field: int, hop: int
) -> None:
    grid = grid_of(kernels, strides)
    assert grid == (hop, field)
    frames = [grid.num_frames(n) for n in (0, 1, field - 1, field, field + hop)]
    assert frames == [0, 0, 0, 1, 2]


def test_the_loaded_layer_is_that_of_the_whole_model(folder: Path) -> None:
    (wave,) = _waves(8_000)
    model = HubertModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        stock = model(torch.from_numpy(wave)[None], output_hidden_states=True).hidden_states
    mine = Hubert.load(folder, 2).features([wave])[0]
    torch.testing.assert_close(mine, stock[2][0])
    assert not torch.allclose(mine, stock[3][0], atol=1e-2)


def test_waves_below_the_receptive_field_have_no_frames(folder: Path) -> None:
    hubert = Hubert.load(folder, 1)
    feats = hubert.features(_waves(399, 0, 400, 3_000))
    assert [tuple(f.shape) for f in feats] == [(0, 32), (0, 32), (1, 32), (9, 32)]
    assert [tuple(f.shape) for f in hubert.features(_waves(10))] == [(0, 32)]
    assert hubert.features([]) == []


def test_a_layer_the_model_does_not_have_is_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"encoder\.layer: 5 is no layer of .*; use 1\.\.4"):
        Hubert.load(folder, 5)


def test_waves_are_standardized_only_where_the_encoder_was_trained_so(
    folder: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "encoder.json").write_text(json.dumps({"normalize_waveform": True}))
    (wave,) = _waves(8_000)
    shifted = 3 * wave + np.float32(0.5)
    scaled = Hubert.load(tmp_path, 1)
    torch.testing.assert_close(
        scaled.features([wave])[0], scaled.features([shifted])[0], atol=1e-4, rtol=1e-3
    )
    expected = ((wave - wave.mean()) / wave.std()).astype(np.float32)
    torch.testing.assert_close(
        scaled.features([wave])[0],
        Hubert.load(folder, 1).features([expected])[0],
        atol=1e-4,
        rtol=1e-3,
    )


def test_reduced_precision_is_close_but_not_the_same(folder: Path) -> None:
    waves = _waves(6_000, 4_000)
    exact = Hubert.load(folder, 2).features(waves)
    reduced = Hubert.load(folder, 2, precision="bf16").features(waves)
    assert {f.dtype for f in reduced} == {torch.float32}
    assert not torch.equal(exact[0], reduced[0])
    torch.testing.assert_close(exact[0], reduced[0], atol=0.15, rtol=0.1)
