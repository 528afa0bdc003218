"""What a worker makes of recordings whose units are judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.audio.corpus_tables import CorpusTables, Part
from jobs.audio.roots import Root
from jobs.speech.judged import JudgeWorker
from jobs.speech.lloyd import Fit, nearest
from jobs.speech.speech_encoder import SpeechEncoder
from jobs.speech.units import EncoderSpec, write_codebook
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Corpus, Source, Windows
from tests.corpora import make_corpus, write_wave
from tests.encoders import small_encoder

WINDOWS = Windows(min_s=0.5, max_s=2.0)
CENTROIDS = torch.randn(7, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tables(tmp_path: Path) -> CorpusTables:
    """Two recordings: one of two windows, the other cut short after its header."""
    write_wave(tmp_path / "speech" / "long.wav", 3 * 16_000)
    write_wave(tmp_path / "speech" / "short.wav", 16_000, seed=1)
    source = Source(name="s", language="en")
    made = make_corpus(
        Storage(str(tmp_path / "corpus")),
        Corpus(sources=(source,), windows=WINDOWS),
        {"s": Root(tmp_path / "speech")},
    )
    whole = (tmp_path / "speech" / "short.wav").read_bytes()
    (tmp_path / "speech" / "short.wav").write_bytes(whole[:20_000])
    return made


def test_units_are_those_of_each_window_alone(tmp_path: Path, tables: CorpusTables) -> None:
    small_encoder("hubert base").save_pretrained(tmp_path / "encoder")
    fit = Fit(centroids=CENTROIDS, inertia=1.0, iterations=1, num_frames=100)
    write_codebook(Storage(str(tmp_path / "codebook")), fit)
    roots = {"s": Root(tmp_path / "speech")}
    spec = EncoderSpec(url=str(tmp_path / "encoder"), layer=2)
    worker = JudgeWorker(spec, roots, WINDOWS, str(tmp_path / "codebook"))
    heard, spread = worker([Part(row, 0, None) for row in tables.rows(0, 2)])
    assert [(j.row, j.start_sample, j.num_samples) for j in heard] == [
        (0, 0, 24_000),
        (0, 24_000, 24_000),
    ]
    wave = write_wave(tmp_path / "again.wav", 3 * 16_000)
    encoder = SpeechEncoder.load(tmp_path / "encoder", 2)
    feats = [encoder.features([half])[0] for half in np.split(wave, 2)]
    for judged, feats_TD in zip(heard, feats, strict=True):
        assert judged.units_T.tolist() == nearest(feats_TD, CENTROIDS).index_N.tolist()
        assert judged.mfcc_TD.shape == (len(feats_TD), 39)
    feats_ND = torch.cat(feats).double().numpy()
    nearest_ND = CENTROIDS.double().numpy()[np.concatenate([j.units_T for j in heard])]
    variance = ((feats_ND - feats_ND.mean(0)) ** 2).sum()
    assert spread.num_frames == len(feats_ND)
    assert spread.unexplained == pytest.approx(((feats_ND - nearest_ND) ** 2).sum() / variance)
