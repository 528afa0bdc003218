"""Pretraining at the smallest size that still learns: a few seconds in all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import HubertModel

from jobs.speech import pretrain, targets
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Pretrain

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
}
GRID = targets.grid_of(SMALL["conv_kernel"], SMALL["conv_stride"])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def spec_of(*steps: int, **over: Any) -> Pretrain:
    iterations = [
        {"targets": "mfcc" if i == 0 else 1, "num_clusters": 5, "steps": n}
        for i, n in enumerate(steps)
    ]
    return Pretrain.model_validate({**SMALL, "iterations": iterations, **over})


def babble(seconds: float) -> targets.Samples:
    """Tones of five pitches in random order, 0.2 s each: sounds that can be told apart."""
    rng = np.random.default_rng(0)
    time_S = np.arange(3200) / 16_000
    tones = [np.sin(2 * np.pi * f * time_S) for f in (200, 500, 1100, 2300, 4700)]
    wav_S = np.concatenate([tones[i] for i in rng.integers(5, size=int(seconds * 5))])
    return pretrain.join(
        [(wav_S / 2 + 0.001 * rng.normal(size=len(wav_S))).astype(np.float32)], GRID
    )


def weights(model: HubertModel) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


def same_bits(one: HubertModel, two: HubertModel) -> bool:
    pairs = zip(weights(one).values(), weights(two).values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class KilledError(Exception):
    pass


def killed_after(steps: int) -> pretrain.Pause:
    def pause(done: int, total: int) -> None:
        if done == steps:
            raise KilledError

    return pause


def test_a_training_killed_in_its_second_iteration_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "SAVE_EVERY_S", 0.0)
    spec, stream_S = spec_of(4, 6), babble(4)
    whole = pretrain.train(spec, stream_S, Storage(str(tmp_path / "whole")))
    work = Storage(str(tmp_path / "killed"))
    for steps in (3, 8):
        with pytest.raises(KilledError):
            pretrain.train(spec, stream_S, work, pause=killed_after(steps))
    seen: list[int] = []
    resumed = pretrain.train(spec, stream_S, work, pause=lambda done, _: seen.append(done))
    assert seen == [8, 9, 10]
    assert same_bits(whole, resumed)


def test_another_seed_gives_another_model(tmp_path: Path) -> None:
    one, two = (
        pretrain.train(spec_of(2, seed=s), babble(4), Storage(str(tmp_path / str(s))))
        for s in (0, 1)
    )
    assert not same_bits(one, two)


def test_masked_frames_are_predicted_better_than_by_the_majority(tmp_path: Path) -> None:
    spec, stream_S, work = spec_of(150, lr=3e-3), babble(20), Storage(str(tmp_path))
    pretrain.train(spec, stream_S, work)
    trainer = pretrain.Trainer(spec=spec, number=1, work=work)
    assert trainer.load()
    targets_T = np.load(tmp_path / "pretrain/targets-1.npy").astype(np.int64)
    draw = pretrain.CropDraw(spec=spec, number=2, stream_S=stream_S, targets_T=targets_T)
    with torch.no_grad():
        right, majority = [], np.bincount(targets_T).max() / len(targets_T)
        for step in range(20):
            batch = draw.batch(step)
            is_right_BT = trainer.learner.eval()(batch).argmax(2) == batch.targets_BT
            right.append(is_right_BT[batch.is_masked_BT].float().mean())
    assert float(torch.stack(right).mean()) > majority + 0.1


def test_frames_of_a_long_stream_equal_those_of_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks must overlap by exactly one field, or targets drift against audio."""
    stream_S = babble(3)
    convolutions = HubertModel(pretrain.hubert_config(spec_of(1))).eval().feature_extractor

    def front_end(wav_S: torch.Tensor) -> torch.Tensor:
        # A transformer layer sees its whole chunk, so only convolutions can be compared like this.
        return convolutions(wav_S[None])[0].T

    whole = targets.frames_of(stream_S, GRID, front_end)
    monkeypatch.setattr(targets, "CHUNK_S", 0.5)
    parts = targets.frames_of(stream_S, GRID, front_end)
    assert whole.shape == (GRID.num_frames(len(stream_S)), 16)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_the_grid_is_that_of_published_encoders() -> None:
    base = targets.grid_of((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))
    assert base == targets.Grid(hop=320, field=400)
    assert targets.grid_of((10, 3, 3, 3, 3, 2, 2, 2), (5, 2, 2, 2, 2, 2, 2, 2)) == (640, 720)
    assert [base.num_frames(n) for n in (399, 400, 719, 720)] == [0, 1, 1, 2]


@pytest.mark.parametrize("grid", [targets.Grid(320, 825), targets.Grid(320, 360)])
def test_mfcc_has_a_row_per_frame_of_the_encoder(grid: targets.Grid) -> None:
    for num_samples in (grid.field, grid.field + grid.hop - 1, 16_000):
        feats_TD = targets.mfcc(grid)(torch.randn(num_samples))
        assert feats_TD.shape == (grid.num_frames(num_samples), 39)


def test_mfcc_rows_lie_where_the_encoder_looks() -> None:
    """A click must show in the row whose field is centred on it."""
    grid = targets.Grid(320, 825)
    wav_S = 1e-4 * torch.randn(32_000, generator=torch.Generator().manual_seed(0))
    wav_S[320 * 40 + 412] = 1.0
    energy_T = targets.mfcc(grid)(wav_S)[:, 0]
    assert int(energy_T.argmax()) == 40


def test_clusters_find_well_separated_groups() -> None:
    rng = np.random.default_rng(0)
    truth_T = rng.integers(6, size=3000)
    feats_TD = (10 * np.eye(6)[truth_T] + rng.normal(size=(3000, 6))).astype(np.float32)
    units_T = targets.label(feats_TD, targets.fit(feats_TD, 6, seed=0))
    assert {len(set(units_T[truth_T == i])) for i in range(6)} == {1}
    assert len(set(units_T)) == 6


def test_masks_cover_the_share_that_their_probability_says() -> None:
    spec = spec_of(1, batch_size=50, mask_prob=0.08, mask_length=10)
    is_masked_BT = pretrain.draw_masks(np.random.default_rng(0), spec, 500)
    assert is_masked_BT.mean() == pytest.approx(1 - 0.92**10, abs=0.02)


def test_the_learning_rate_rises_and_falls_to_a_tenth() -> None:
    shares = [pretrain.lr_share(step, 100, 10) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == shares[9] == pytest.approx(1)
    assert shares[-1] == pytest.approx(0.1, abs=0.02)


def test_the_saved_model_loads_as_any_hubert(tmp_path: Path) -> None:
    model = HubertModel(pretrain.hubert_config(spec_of(1))).eval()
    wav_BS = torch.randn(1, 8000)
    before_BTD = model(wav_BS).last_hidden_state.detach()
    digest = pretrain.save(model, tmp_path)
    assert len(digest) == 64
    loaded = HubertModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(loaded(wav_BS).last_hidden_state, before_BTD, atol=0.02, rtol=0.02)
