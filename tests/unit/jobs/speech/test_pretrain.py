"""Masked prediction without ranks: crops, masks, the loss, what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import HubertModel

from jobs.speech import pretrain, targets
from jobs.speech.grid import grid_of
from jobs.speech.utterances import Utterance
from orchestrator.errors import DataError
from orchestrator.spec.recipe import Pretrain
from tests.corpora import row_of

SMALL: dict[str, Any] = {
    "conv_dim": (8, 16),
    "conv_kernel": (20, 18),
    "conv_stride": (20, 16),
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 32,
    "crop_s": 0.6,
    "warmup_steps": 2,
    "mask_length": 4,
    "iterations": [{"targets": "mfcc", "num_clusters": 5, "steps": 1}],
}
GRID = grid_of(SMALL["conv_kernel"], SMALL["conv_stride"])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def spec_of(**over: Any) -> Pretrain:
    return Pretrain.model_validate({**SMALL, **over})


def crops_of(spec: Pretrain, lengths: list[int], number: int = 1) -> pretrain.Crops:
    """Crops of blocks in which every sample and label tells the block and the frame it is of."""
    blocks = targets.AudioBlocks(
        [[Utterance(str(n), row_of(str(n)), 0, length)] for n, length in enumerate(lengths)], GRID
    )
    stream, labels = [], []
    for n, (num_samples, num_frames) in enumerate(
        zip(blocks.num_samples, blocks.num_frames, strict=True)
    ):
        stream.append(1_000 * n + np.arange(num_samples) // GRID.hop)
        labels.append(1_000 * n + np.arange(num_frames))
    return pretrain.Crops(
        spec,
        number,
        blocks,
        np.concatenate(stream).astype(np.int16),
        np.concatenate(labels).astype(np.uint16),
    )


def test_crops_lie_within_a_block_and_labels_on_their_frames() -> None:
    crops = crops_of(spec_of(), [16_000, 3_200, 20_000])  # the second holds no crop
    seen = set()
    for sample in range(1_000):
        wav_S, is_masked_T, targets_T = crops(sample)
        assert len(targets_T) == len(is_masked_T) == crops.num_frames
        assert GRID.num_frames(len(wav_S)) == crops.num_frames
        first = int(targets_T[0])
        assert targets_T.tolist() == list(range(first, first + crops.num_frames))
        assert round(float(wav_S[0]) * 32_768) == first
        seen.add(first)
    num_choices = [
        GRID.num_frames(GRID.trimmed(n)) - crops.num_frames + 1 for n in (16_000, 20_000)
    ]
    assert {first // 1_000 for first in seen} == {0, 2}
    assert max(seen) == 2_000 + num_choices[1] - 1
    assert len(seen) == sum(num_choices)


def test_a_sample_is_a_function_of_seed_iteration_and_number() -> None:
    lengths = [16_000, 20_000]

    def drawn(spec: Pretrain, number: int, sample: int) -> list[Any]:
        wav_S, is_masked_T, _ = crops_of(spec, lengths, number)(sample)
        return [*wav_S.tolist(), *is_masked_T.tolist()]

    first = drawn(spec_of(), 1, 7)
    assert first == drawn(spec_of(), 1, 7)
    assert first != drawn(spec_of(), 1, 8)
    assert first != drawn(spec_of(), 2, 7)
    assert first != drawn(spec_of(seed=1), 1, 7)


def test_audio_without_room_for_a_crop_is_the_datas_fault() -> None:
    with pytest.raises(DataError, match=r"encoder.pretrain.crop_s: no stretch .* lasts 0.6 s"):
        crops_of(spec_of(), [8_000])


def test_masks_cover_the_share_that_their_probability_says() -> None:
    spec = spec_of(mask_prob=0.08, mask_length=10)
    is_masked_T = pretrain.draw_mask(np.random.default_rng(0), spec, 25_000)
    assert is_masked_T.mean() == pytest.approx(1 - 0.92**10, abs=0.02)


def test_the_loss_of_a_batch_is_the_mean_of_its_crops() -> None:
    torch.manual_seed(0)
    logits_BTK, targets_BT = torch.randn(3, 7, 5), torch.randint(5, (3, 7))
    is_masked_BT = torch.rand(3, 7) < 0.5
    is_masked_BT[2] = False  # a crop that drew no mask
    whole = pretrain.masked_loss(logits_BTK, is_masked_BT, targets_BT, 0.5)
    alone = [
        pretrain.masked_loss(logits_BTK[[b]], is_masked_BT[[b]], targets_BT[[b]], 0.5)
        for b in range(3)
    ]
    torch.testing.assert_close(whole, torch.stack(alone).mean())
    nll_T = torch.nn.functional.cross_entropy(logits_BTK[0], targets_BT[0], reduction="none")
    expected = nll_T[is_masked_BT[0]].mean() + 0.5 * nll_T[~is_masked_BT[0]].mean()
    torch.testing.assert_close(alone[0], expected)


def test_the_learning_rate_rises_and_falls_to_a_tenth() -> None:
    shares = [pretrain.lr_share(step, 100, 10) for step in range(1, 101)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == shares[9] == pytest.approx(1)
    assert shares[-1] == pytest.approx(0.1, abs=0.02)
    assert pretrain.lr_share(1, 100, 0) == 1


def test_the_saved_model_loads_as_any_hubert(tmp_path: Path) -> None:
    model = HubertModel(pretrain.hubert_config(spec_of())).eval()
    wav_BS = torch.randn(1, 8000)
    before_BTD = model(wav_BS).last_hidden_state.detach()
    pretrain.save(model, tmp_path)
    loaded = HubertModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(loaded(wav_BS).last_hidden_state, before_BTD, atol=0.02, rtol=0.02)
