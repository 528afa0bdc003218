from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from benchmarks.encoders import noise_of
from benchmarks.kmeans import DEMO_ENCODER, compare, features, waves


def test_every_way_has_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    compare(torch.randn(600, 4), 4, rounds=1)
    said = capsys.readouterr().out
    assert "600 x 4 frames, 4 clusters" in said
    assert "inertia 1.0000 (1.0000 to 1.0000) of its" in said
    for rival in ("scikit-learn, as fairseq", "faiss"):
        assert rival in said


def test_frames_of_all_layers_side_by_side(tmp_path: Path) -> None:
    wav_S = noise_of(np.random.default_rng(0), 3)
    soundfile.write(tmp_path / "a.wav", wav_S, 16_000)
    assert features(waves(tmp_path), DEMO_ENCODER, 100).shape == (100, 768)
