from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HubertModel

from benchmarks.unit_quality import Spoken, compare, load_spoken, speak
from jobs.audio.alignments import Phone
from jobs.speech.pretrain import hubert_config
from orchestrator.errors import RequestError
from orchestrator.spec.recipe import Pretrain


@pytest.mark.skipif(not shutil.which("festival"), reason="needs festival")
def test_festival_states_phone_times(tmp_path: Path) -> None:
    speak(tmp_path, ["kal_diphone"], ["Six foxes."])
    (spoken,) = load_spoken(tmp_path, None)
    said = [phone.label for phone in spoken.phones if phone.label]
    assert said[:4] == ["s", "ih", "k", "s"]
    ends_s = [phone.end_s for phone in spoken.phones]
    assert ends_s == sorted(ends_s)
    assert 0 <= len(spoken.wav_S) / 16_000 - ends_s[-1] < 0.3


def test_a_folder_without_phone_times_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no .wav with a .lab"):
        load_spoken(tmp_path, None)


def test_mfcc_and_the_layers_are_compared_on_the_same_frames(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    spec = Pretrain.model_validate(
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
    model = HubertModel(hubert_config(spec)).eval()
    hiss = [rng.normal(size=8000).astype(np.float32) / 20 for _ in range(2)]
    hum = [np.sin(np.arange(8000) / 20).astype(np.float32) for _ in range(2)]
    phones = (Phone(0.0, 0.5, "s"), Phone(0.5, 1.0, "m"))
    test = [Spoken(np.concatenate([hiss[0], hum[0]]), phones)]
    rows = compare(model, [hiss[1], hum[1]], test, [2], layers=[2])
    assert [row.features for row in rows] == ["mfcc", "mfcc standardised", "encoder layer 2"]
    assert rows[0].quality.pnmi > 0.8  # hiss and hum are easy to tell apart by their spectrum
