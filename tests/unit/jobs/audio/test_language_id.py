from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from jobs.audio.language_id import Spread, identify, whisper
from orchestrator.errors import RequestError

SECOND_S = 16_000
LANGUAGES = {"<|en|>": 50, "<|de|>": 51, "<|ru|>": 52}


class Labelled:
    """A window's first samples are the probabilities of German, English and Russian."""

    def probabilities(self, windows: Sequence[np.ndarray]) -> list[Mapping[str, float]]:
        return [dict(zip(("de", "en", "ru"), wav_S.tolist(), strict=True)) for wav_S in windows]


def window(*probabilities: float) -> np.ndarray:
    return np.array(probabilities, np.float32)


def test_windows_are_averaged() -> None:
    heard = [window(0.1, 0.6, 0.3), window(0.7, 0.2, 0.1), window(0.1, 0.4, 0.5)]
    assert identify(heard, Labelled(), ["en"]) == ("en", 0.4, 0.4)
    assert identify(heard[1:], Labelled(), ["en", "ru"]) == ("de", 0.4, 0.6)
    assert identify(heard[:1], Labelled(), ["xx"]) == ("en", 0.6, 0.0)


def test_equals_are_told_apart_by_their_names() -> None:
    found = identify([window(0.4, 0.2, 0.4)], Labelled())
    assert found is not None
    assert found.language == "de"


def test_a_recording_without_speech_has_no_language() -> None:
    assert identify([], Labelled()) is None


def offered(speech_s: Sequence[float], count: int = 3) -> list[int]:
    spread = Spread(count=count, min_speech_s=5.0)
    for number, seconds in enumerate(speech_s):
        spread.offer(np.array([number], np.float32), seconds)
    return [int(wav_S[0]) for wav_S in spread.windows()]


@pytest.mark.parametrize(
    ("num_blocks", "expected"),
    [(0, []), (1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (6, [1, 3, 5]), (7, [1, 3, 5])],
)
def test_few_blocks_are_spread(num_blocks: int, expected: list[int]) -> None:
    assert offered([10.0] * num_blocks) == expected


@pytest.mark.parametrize("num_blocks", [12, 13, 100, 12_000])
def test_many_blocks_are_spread_over_all_that_pass(num_blocks: int) -> None:
    kept = offered([10.0] * num_blocks)
    thirds = [3 * number // num_blocks for number in kept]
    assert len(kept) == 3
    assert thirds[0] == 0
    assert thirds[-1] == 2
    assert max(np.diff(kept)) <= 0.5 * num_blocks


def test_blocks_with_little_speech_are_heard_only_where_there_is_no_other() -> None:
    assert offered([0.0, 2.0, 4.0, 3.0]) == [2]
    assert offered([0.0, 2.0, 6.0, 3.0, 7.0]) == [2, 4]
    assert offered([0.0, 0.0]) == []


def tiny_whisper(into: Path) -> Path:
    """A Whisper that knows three languages, with random weights; its folder."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=60,
        num_mel_bins=80,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        decoder_start_token_id=1,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        lang_to_id=LANGUAGES, is_multilingual=True, decoder_start_token_id=1
    )
    model.save_pretrained(into)
    return into


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("whisper"))


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    wav_S = np.random.default_rng(seed).normal(0, 0.1, int(seconds * SECOND_S))
    return wav_S.astype(np.float32)


def test_whisper_of_transformers_says_how_probable_each_language_is(folder: Path) -> None:
    model = whisper(folder)
    windows = [noise(3.0), noise(30.0, seed=1), noise(40.0, seed=2)]
    heard = model.probabilities(windows)
    assert [set(one) for one in heard] == [{"en", "de", "ru"}] * 3
    assert [sum(one.values()) for one in heard] == pytest.approx([1.0] * 3)
    alone = [model.probabilities([wav_S])[0] for wav_S in windows]
    for together, by_itself in zip(heard, alone, strict=True):
        assert together == pytest.approx(by_itself, abs=1e-5)


def test_whisper_agrees_with_transformers_own_choice(folder: Path) -> None:
    model = whisper(folder)
    (heard,) = model.probabilities([noise(5.0)])
    theirs = model._model.detect_language(torch.from_numpy(model._features([noise(5.0)])))
    assert LANGUAGES[f"<|{max(heard, key=lambda name: heard[name])}|>"] == int(theirs[0])


def test_what_is_no_whisper_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(RequestError, match="holds no Whisper model; give a folder with"):
        whisper(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RequestError, match=f"language_id: {tmp_path}"):
        whisper(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"garbage")
    with pytest.raises(RequestError, match="cannot be loaded by CTranslate2"):
        whisper(tmp_path)


def test_a_model_of_one_language_is_refused(tmp_path: Path, folder: Path) -> None:
    for file in folder.iterdir():
        if file.name != "generation_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(RequestError, match="knows one language only; give a multilingual"):
        whisper(tmp_path)
