from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HubertModel

from benchmarks.unit_quality import Spoken, compare, load_spoken, phones_at, score, speak
from jobs.speech.grid import Grid
from jobs.speech.pretrain import hubert_config
from orchestrator.errors import RequestError
from orchestrator.spec.recipe import Pretrain

PHONES = np.array([0, 0, 0, 1, 1, 1])


def test_units_that_name_the_phones_score_one() -> None:
    assert score(PHONES, 5 - PHONES) == pytest.approx((1, 1, 1))


def test_units_that_say_nothing_score_no_information() -> None:
    found = score(PHONES, np.zeros(6, np.int64))
    assert found == pytest.approx((0, 0.5, 1))


def test_scores_against_a_joint_table_by_hand() -> None:
    found = score(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
    entropy_phone = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    information = entropy_phone + np.log(2) - (0.5 * np.log(2) + 0.5 * np.log(4))
    assert found.pnmi == pytest.approx(information / entropy_phone)
    assert found.phone_purity == pytest.approx(0.75)
    assert found.cluster_purity == pytest.approx(0.75)


def test_a_single_phone_has_no_information_to_keep() -> None:
    with pytest.raises(RequestError, match="two phones at least"):
        score(np.zeros(4, np.int64), np.arange(4))


def test_frames_take_the_phone_at_their_centre() -> None:
    spoken = Spoken(np.zeros(16_000, np.float32), (0.5, 0.75), ("a", "b"))
    # Centres: 0.2, 0.4, 0.6, 0.8 s; after 0.75 s nobody speaks.
    assert phones_at(spoken, Grid(hop=3200, field=6400)) == ["a", "a", "b", "pau"]


@pytest.mark.skipif(not shutil.which("festival"), reason="needs festival")
def test_festival_states_phone_times(tmp_path: Path) -> None:
    speak(tmp_path, ["kal_diphone"], ["Six foxes."])
    (spoken,) = load_spoken(tmp_path, None)
    said = [p for p in spoken.phones if p != "pau"]
    assert said[:4] == ["s", "ih", "k", "s"]
    assert list(spoken.ends_s) == sorted(spoken.ends_s)
    assert 0 <= len(spoken.wav_S) / 16_000 - spoken.ends_s[-1] < 0.3


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
    test = [Spoken(np.concatenate([hiss[0], hum[0]]), (0.5, 1.0), ("s", "m"))]
    rows = compare(model, [hiss[1], hum[1]], test, [2], layers=[2])
    assert [row.features for row in rows] == ["mfcc", "mfcc standardised", "encoder layer 2"]
    assert rows[0].score.pnmi > 0.8  # hiss and hum are easy to tell apart by their spectrum
