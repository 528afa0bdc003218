"""Says which language is spoken in a recording.

In: blocks of ``wav_S`` and when there is speech in them. Out: a language and its probability. Some
blocks with speech, spread over the recording, are kept while it is decoded; a model gives the
probabilities of all its languages for each, and their mean decides. Any model with `LanguageId`
will do; here are Whisper's, in the format of transformers or of CTranslate2.

Shapes: S samples at 16 kHz, B windows, M mel bands, T frames, L languages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from jobs.audio.languages import language_code
from jobs.weights import first_line, load_whole
from orchestrator.errors import RequestError
from orchestrator.quantities import SAMPLE_RATE_HZ

Wave = npt.NDArray[np.float32]
Probabilities = Mapping[str, float]
"""Of each language a model knows, by its ISO 639 code; together 1."""

WINDOW_S = 30
"""What a model hears at once, at most; longer windows are cut."""


class LanguageId(Protocol):
    """Knows languages when it hears them."""

    def probabilities(self, windows: Sequence[Wave]) -> list[Probabilities]:
        """For each window, which has at most ``WINDOW_S``."""


class Identified(NamedTuple):
    """What a recording is in."""

    language: str
    """ISO 639 code of the most probable one; the first of equals in the alphabet."""
    probability: float
    """Its own, averaged over the windows, to four digits."""
    wanted: float
    """Of the languages asked for, together."""


def identify(
    windows: Sequence[Wave], model: LanguageId, wanted: Sequence[str] = ()
) -> Identified | None:
    """The language of a recording by some windows of it; None without a window."""
    if not windows:
        return None
    heard = model.probabilities(windows)
    mean = {name: sum(one[name] for one in heard) / len(heard) for name in sorted(heard[0])}
    language = max(mean, key=lambda name: mean[name])
    of_wanted = sum(mean.get(name, 0.0) for name in set(map(language_code, wanted)))
    return Identified(language, round(mean[language], 4), round(of_wanted, 4))


class Spread:
    """Keeps some of the blocks with speech that pass, spread over all of them.

    A pure function of what passes, however much that is: of ``4 * count`` blocks kept, every other
    one is dropped, and from then on only every other one is kept.
    """

    def __init__(self, count: int = 3, min_speech_s: float = 5.0) -> None:
        """``min_speech_s``: blocks with less are kept only where there is no other."""
        self._count, self._min_speech_s = count, min_speech_s
        self._kept: list[Wave] = []
        self._step, self._num_passed = 1, 0
        self._best: tuple[float, Wave] | None = None

    def offer(self, wav_S: Wave, speech_s: float) -> None:
        """A block in its turn, with how many seconds of speech it has."""
        if speech_s < self._min_speech_s:
            if speech_s > (self._best[0] if self._best else 0.0):
                self._best = speech_s, wav_S
            return
        if self._num_passed % self._step == 0:
            if len(self._kept) == 4 * self._count:
                self._kept, self._step = self._kept[::2], 2 * self._step
            if self._num_passed % self._step == 0:
                self._kept.append(wav_S)
        self._num_passed += 1

    def windows(self) -> list[Wave]:
        """``count`` of those kept at most."""
        if not self._kept:
            return [self._best[1]] if self._best else []
        num = min(self._count, len(self._kept))
        middle = (np.arange(num) + 0.5) * len(self._kept) / num
        return [self._kept[int(i)] for i in middle]


def whisper(folder: Path, device: str = "cpu", threads: int = 1) -> LanguageId:
    """The model in a folder, of CTranslate2 or of transformers, whichever it has.

    Raises RequestError when it is neither, knows one language only, or CTranslate2 is missing.
    """
    if (folder / "model.bin").is_file():
        return CTranslate2Whisper(folder, device, threads)
    if (folder / "config.json").is_file():
        return TransformersWhisper(folder, device)
    raise RequestError(
        f"{folder}: holds no Whisper model; give a folder with the model.bin of CTranslate2, or "
        "with the config.json and model.safetensors of transformers"
    )


class CTranslate2Whisper:
    """Whisper in CTranslate2's format, on CPUs in 8 bits."""

    def __init__(self, folder: Path, device: str = "cpu", threads: int = 1) -> None:
        try:
            import ctranslate2
        except ModuleNotFoundError:
            raise RequestError(
                f"{folder}: is a model of CTranslate2, which is not installed; "
                "pip install 'orchestrator[language-id]' on the nodes"
            ) from None
        kind = device.partition(":")[0]
        self._of_array = ctranslate2.StorageView.from_array
        compute_type = "int8" if kind == "cpu" else "float16"
        try:
            self._model: Any = ctranslate2.models.Whisper(
                str(folder), kind, intra_threads=threads, compute_type=compute_type
            )
        except (RuntimeError, ValueError) as error:
            raise RequestError(
                f"{folder}: cannot be loaded by CTranslate2 ({first_line(error)}); "
                "convert the model again"
            ) from None
        if not self._model.is_multilingual:
            raise _knows_one(folder)
        self._features = _Features(self._model.n_mels)

    def probabilities(self, windows: Sequence[Wave]) -> list[Probabilities]:
        """For each window, which has at most ``WINDOW_S``."""
        feats_BMT = self._of_array(self._features(windows))
        return [
            {_code(token): probability for token, probability in one}
            for one in self._model.detect_language(feats_BMT)
        ]


class TransformersWhisper:
    """Whisper in transformers' format, in fp32."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        whole = load_whole(
            WhisperForConditionalGeneration, folder, where="language_id", dtype=torch.float32
        )
        self._model: Any = whole.eval().to(device)
        tokens = getattr(self._model.generation_config, "lang_to_id", None)
        if not tokens:
            raise _knows_one(folder)
        self._codes, self._ids_L = [_code(name) for name in tokens], list(tokens.values())
        self._features = _Features(self._model.config.num_mel_bins)

    def probabilities(self, windows: Sequence[Wave]) -> list[Probabilities]:
        """For each window, which has at most ``WINDOW_S``."""
        feats_BMT = torch.from_numpy(self._features(windows)).to(self._model.device)
        start = torch.full((len(windows), 1), self._model.config.decoder_start_token_id)
        with torch.inference_mode():
            said = self._model(feats_BMT, decoder_input_ids=start.to(self._model.device))
        heard_BL = said.logits[:, -1, self._ids_L].softmax(dim=-1).tolist()
        return [dict(zip(self._codes, heard_L, strict=True)) for heard_L in heard_BL]


class _Features:
    """What Whisper hears: log-mel spectra of ``WINDOW_S``, filled up with silence."""

    def __init__(self, num_mels: int) -> None:
        self._extract: Any = WhisperFeatureExtractor(feature_size=num_mels)

    def __call__(self, windows: Sequence[Wave]) -> npt.NDArray[np.float32]:
        most = WINDOW_S * SAMPLE_RATE_HZ
        made = self._extract(
            [wav_S[:most] for wav_S in windows], sampling_rate=SAMPLE_RATE_HZ, return_tensors="np"
        )
        return np.ascontiguousarray(made["input_features"], np.float32)


def _code(token: str) -> str:
    """``en`` of ``<|en|>``."""
    return language_code(token.strip("<|>"))


def _knows_one(folder: Path) -> RequestError:
    return RequestError(f"{folder}: knows one language only; give a multilingual Whisper")
