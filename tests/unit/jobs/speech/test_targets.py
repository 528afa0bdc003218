"""Grids, features and labels of pretraining's targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import HubertModel

from jobs.audio.corpus_tables import CorpusTables
from jobs.audio.roots import Root
from jobs.speech import targets
from jobs.speech.grid import Grid, grid_of
from jobs.speech.lloyd import BlocksInMemory, fit
from jobs.speech.pretrain import hubert_config
from jobs.speech.units import write_codebook
from jobs.speech.utterances import WaveReader
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Corpus, Pretrain, Source
from tests.corpora import make_corpus, sampled, utterances_of

SMALL = Pretrain.model_validate(
    {
        "conv_dim": (8, 16),
        "conv_kernel": (20, 18),
        "conv_stride": (20, 16),
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 32,
        "iterations": [{"steps": 1}],
    }
)
GRID = grid_of(SMALL.conv_kernel, SMALL.conv_stride)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_the_grid_is_that_of_published_encoders() -> None:
    base = grid_of((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))
    assert base == Grid(hop=320, field=400)
    assert grid_of((10, 3, 3, 3, 3, 2, 2, 2), (5, 2, 2, 2, 2, 2, 2, 2)) == (640, 720)
    assert [base.num_frames(n) for n in (399, 400, 719, 720)] == [0, 1, 1, 2]
    assert [base.trimmed(n) for n in (319, 320, 700)] == [0, 320, 640]


def test_frames_of_a_long_wave_equal_those_of_one_pass() -> None:
    """Chunks must overlap by exactly one field, or targets drift against audio."""
    wave_S = np.random.default_rng(0).integers(-9_000, 9_000, 48_000).astype(np.int16)
    convolutions = HubertModel(hubert_config(SMALL)).eval().feature_extractor

    def front_end(wav_S: torch.Tensor) -> torch.Tensor:
        # A transformer layer sees its whole chunk, so only convolutions can be compared like this.
        return convolutions(wav_S[None])[0].T

    whole = targets.frames_of(wave_S, GRID, front_end)
    parts = targets.frames_of(wave_S, GRID, front_end, chunk_s=0.5)
    assert whole.shape == (GRID.num_frames(len(wave_S)), 16)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("grid", [Grid(320, 825), Grid(320, 360)])
def test_mfcc_has_a_row_per_frame_of_the_encoder(grid: Grid) -> None:
    for num_samples in (grid.field, grid.field + grid.hop - 1, 16_000):
        feats_TD = targets.mfcc(grid)(torch.randn(num_samples))
        assert feats_TD.shape == (grid.num_frames(num_samples), 39)


def test_mfcc_rows_lie_where_the_encoder_looks() -> None:
    """A click must show in the row whose field is centred on it."""
    grid = Grid(320, 825)
    wav_S = 1e-4 * torch.randn(32_000, generator=torch.Generator().manual_seed(0))
    wav_S[320 * 40 + 412] = 1.0
    energy_T = targets.mfcc(grid)(wav_S)[:, 0]
    assert int(energy_T.argmax()) == 40


def _groups() -> tuple[np.ndarray, torch.Tensor]:
    """Frames of six groups, told apart in dimensions of very different sizes."""
    rng = np.random.default_rng(0)
    truth_T = rng.integers(6, size=3000)
    feats_TD = (10 * np.eye(6)[truth_T] + rng.normal(size=(3000, 6))) * 10.0 ** np.arange(6)
    return truth_T, torch.from_numpy(feats_TD.astype(np.float32))


def test_standardised_features_find_well_separated_groups() -> None:
    truth_T, feats_TD = _groups()
    scaling = targets.scaling_of(feats_TD, standardise=True)
    scaled_TD = targets.scaled(feats_TD, scaling)
    torch.testing.assert_close(scaled_TD.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled_TD.std(0), torch.ones(6), atol=1e-3, rtol=0)
    fitted = fit(BlocksInMemory(targets.scaled(feats_TD, scaling).split(700)), 6, seed=1)
    labels_T = targets.label(feats_TD, {"centroids": fitted.centroids, **scaling})
    assert {len(set(labels_T[truth_T == i])) for i in range(6)} == {1}
    assert len(set(labels_T)) == 6


def test_the_features_of_a_layer_stay_as_they_are() -> None:
    _, feats_TD = _groups()
    scaling = targets.scaling_of(feats_TD, standardise=False)
    assert torch.equal(targets.scaled(feats_TD, scaling), feats_TD)


def corpus_of(folder: Path, lengths: list[int]) -> tuple[CorpusTables, dict[str, Root]]:
    """Square waves: the levels of a block then tell which utterances it holds, in what order."""
    root = folder / "root"
    (root / "en").mkdir(parents=True)
    for i, length in enumerate(lengths):
        wave = np.where(np.arange(length) // 8 % 2, 1, -1) * (i + 1) / 10
        soundfile.write(root / f"en/{i}.wav", wave, 16_000, subtype="FLOAT")
    roots = {"s": Root(root)}
    corpus = Corpus(sources=(Source(name="s"),))
    return make_corpus(Storage(str(folder / "corpus")), corpus, roots), roots


def blocks_of(
    tables: CorpusTables, roots: dict[str, Root], spec: Pretrain = SMALL
) -> targets.AudioBlocks:
    found = sampled(tables, roots, hours=spec.max_hours, seed=spec.seed)
    return targets.AudioBlocks.of(utterances_of(tables, found), spec)


def test_blocks_are_max_hours_of_whole_hops_in_corpus_order(tmp_path: Path) -> None:
    tables, roots = corpus_of(tmp_path, [8_100] * 8)
    spec = SMALL.model_copy(update={"max_hours": 5 * 8_100 / 16_000 / 3600})
    blocks = blocks_of(tables, roots, spec)
    (block,) = blocks.blocks
    wave_S = targets.read_block(block, WaveReader(roots), blocks.grid)
    assert len(wave_S) == blocks.num_samples[0] == 5 * 8_000
    assert blocks.num_frames.tolist() == [GRID.num_frames(5 * 8_000)]
    values = [round(abs(float(v)) / 32_767 * 10) for v in wave_S[::8_000]]
    assert values == sorted(values)
    assert len(set(values)) == 5
    other = blocks_of(tables, roots, spec.model_copy(update={"seed": 1}))
    assert other.blocks != blocks.blocks


def test_a_worker_samples_a_block_and_writes_its_labels(tmp_path: Path) -> None:
    tables, roots = corpus_of(tmp_path, [16_000, 12_345])
    blocks = blocks_of(tables, roots)
    out = Storage(str(tmp_path / "out"))
    worker = targets.TargetWorker(None, blocks.grid, roots, out.url)
    task: dict[str, Any] = {"block": 0, "utterances": blocks.blocks[0]}
    sample_MD = worker(targets.TargetTask(**task, count=30))
    assert sample_MD is not None
    assert sample_MD.shape == (30, 39)
    scaling = targets.scaling_of(sample_MD, standardise=True)
    fitted = fit(BlocksInMemory([targets.scaled(sample_MD, scaling)]), 3, seed=0)
    write_codebook(out, fitted, **scaling)
    for _ in range(2):  # a later attempt writes the same again
        assert worker(targets.TargetTask(**task)) is None
    labels_T = targets.read_labels(out, 0)
    assert labels_T.dtype == np.uint16
    assert len(labels_T) == blocks.num_frames[0]
    assert labels_T.max() < 3
