from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.audio.voice_activity import Silero, Stretch, silero_weights, speech
from orchestrator.errors import RequestError
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import VoiceActivity

RNG = np.random.default_rng(0)
NO_PADDING = VoiceActivity(pad_s=0.0, min_pause_s=0.3, min_speech_s=0.2)


class Written:
    """The probability of a frame is the first sample of it."""

    frame_s = 0.1

    def probabilities(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for wav_S in blocks:
            yield wav_S[:: int(self.frame_s * SAMPLE_RATE_HZ)]


def found(probabilities: list[float], rule: VoiceActivity, block: int = 4) -> list[Stretch]:
    wav_S = np.repeat(np.array(probabilities, np.float32), int(0.1 * SAMPLE_RATE_HZ))
    size = block * int(0.1 * SAMPLE_RATE_HZ)
    blocks = [wav_S[start : start + size] for start in range(0, len(wav_S), size)]
    return list(speech(blocks, Written(), rule))


def rounded(stretches: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(round(a, 3), round(b, 3)) for a, b in stretches]


@pytest.mark.parametrize("block", [1, 3, 100])
@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([], []),
        ([0.0] * 9, []),
        ([0.9] * 9, [(0.0, 0.9)]),
        ([0, 0, 0.9, 0.9, 0.9, 0, 0, 0, 0], [(0.2, 0.5)]),
        ([0, 0.9, 0.9, 0, 0, 0.9, 0.9, 0], [(0.1, 0.7)]),
        ([0, 0.9, 0.9, 0, 0, 0, 0.9, 0.9], [(0.1, 0.3), (0.6, 0.8)]),
        ([0, 0.9, 0, 0, 0, 0, 0, 0], []),
        ([0, 0.4, 0.9, 0.4, 0.4, 0.4, 0.4, 0.0], [(0.2, 0.7)]),
        ([0.9, 0.9, 0.1, 0.4, 0.1, 0.1, 0.1], [(0.0, 0.2)]),
        ([0, 0, 0, 0, 0, 0.9, 0.9, 0, 0], [(0.5, 0.7)]),
    ],
)
def test_speech_is_what_goes_on(
    probabilities: list[float], expected: list[tuple[float, float]], block: int
) -> None:
    assert rounded(found(probabilities, NO_PADDING, block)) == expected


def test_padding_ends_in_the_middle_of_a_pause_and_at_the_ends() -> None:
    rule = VoiceActivity(pad_s=0.25, min_pause_s=0.3, min_speech_s=0.2)
    probabilities = [0, 0.9, 0.9, 0, 0, 0, 0.9, 0.9, 0, 0, 0, 0, 0, 0.9, 0.9, 0]
    expected = [(0.0, 0.45), (0.45, 1.05), (1.05, 1.6)]
    assert rounded(found(probabilities, rule)) == expected


def bursts(seconds: float) -> np.ndarray:
    """Noise that comes and goes as syllables do: probabilities are neither 0 nor 1."""
    time_s = np.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    voice = np.sign(np.sin(2 * np.pi * 120 * time_s)) * (1 + np.sin(2 * np.pi * 4 * time_s))
    return (0.05 * voice + RNG.normal(0, 0.02, len(time_s))).astype(np.float32)


def test_what_is_found_depends_on_the_samples_alone() -> None:
    wav_S, silero = bursts(40.0), Silero()
    whole = np.concatenate(list(silero.probabilities([wav_S])))
    assert len(whole) == 40 / silero.frame_s
    assert whole.max() > 0.05
    num_threads = torch.get_num_threads()
    for threads, cuts in ((1, [1, 700, 700, 400_000]), (2, [480_000])):
        torch.set_num_threads(threads)
        again = np.concatenate(list(silero.probabilities(np.split(wav_S, cuts))))
        assert again.tobytes() == whole.tobytes()
        assert torch.get_num_threads() == threads
    torch.set_num_threads(num_threads)


def test_frames_together_say_what_the_published_network_says_one_by_one() -> None:
    published = _published()
    silero, wav_S = Silero(), bursts(8.0)[: 60 * 512 - 100]
    silero._network.load_state_dict(_renamed(published.state_dict()))
    padded_S = torch.from_numpy(np.pad(wav_S, (0, 100)))
    with torch.no_grad():
        expected = [
            published(padded_S[i : i + 512], SAMPLE_RATE_HZ) for i in range(0, 60 * 512, 512)
        ]
    p_T = np.concatenate(list(silero.probabilities([wav_S])))
    assert np.abs(p_T - torch.cat(expected)[:, 0].numpy()).max() < 1e-4


def _published() -> torch.jit.ScriptModule:
    """The package's TorchScript: of a later training than its safetensors, of the same shape."""
    spec = importlib.util.find_spec("silero_vad")
    assert spec is not None
    assert spec.origin is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript has been superseded
        return torch.jit.load(Path(spec.origin).parent / "data/silero_vad.jit")


def _renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {
        "_model.stft.forward_basis_buffer": "stft_conv.weight",
        "_model.decoder.decoder.2.weight": "final_conv.weight",
        "_model.decoder.decoder.2.bias": "final_conv.bias",
    }
    for layer in range(4):
        for part in ("weight", "bias"):
            names[f"_model.encoder.{layer}.reparam_conv.{part}"] = f"conv{layer + 1}.{part}"
    for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        names[f"_model.decoder.rnn.{part}"] = f"lstm.{part}_l0"
    return {new: weights[old] for old, new in names.items()}


def test_a_package_that_is_missing_or_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"silero-vad is not installed; pip install"):
        silero_weights("no_such_package")
    with pytest.raises(RequestError, match=r"other weights than 6\.2\.3; pip install"):
        silero_weights("jobs")
    assert silero_weights()
