"""What recipes/smoke.yaml needs, made from nothing: synthetic syllables and a tiny text LM.

The syllables are harmonics under two formants between bursts of noise: enough structure for k-means
to find, none of a real voice. The language model is a two-layer LLaMA with seeded weights. Both are
the same bytes wherever they are made.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from orchestrator.quantities import SAMPLE_RATE_HZ

VOWELS_HZ = ((730, 1090), (270, 2290), (300, 870), (530, 1840), (660, 1720), (440, 1020))
"""First two formants of six English vowels (Peterson and Barney 1952, men)."""
NUM_ENGLISH, NUM_SPANISH = 24, 3
MARKER = "smoke-made"


def make_material(to: Path) -> None:
    """Write ``to/speech/{en,es}/*.wav`` and ``to/lm``; nothing when they are there already."""
    if (to / MARKER).exists():
        return
    for index in range(NUM_ENGLISH + NUM_SPANISH):
        folder = to / "speech" / ("en" if index < NUM_ENGLISH else "es") / f"speaker{index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        wav_S = babble(np.random.default_rng(index), syllables=6 + index % 9)
        soundfile.write(folder / f"{index:03d}.wav", wav_S, SAMPLE_RATE_HZ, subtype="PCM_16")
    (to / "speech" / "en" / "broken.wav").write_bytes(b"RIFF, but not a recording")
    make_text_lm(to / "lm")
    (to / MARKER).touch()


def babble(rng: np.random.Generator, *, syllables: int) -> np.ndarray:
    """Alternating noise bursts and vowels as float32 samples in (-1, 1), at 16 kHz."""
    parts = []
    pitch_hz = rng.uniform(90, 180)
    for _ in range(syllables):
        parts.append(rng.normal(0, 0.05, int(rng.uniform(0.03, 0.08) * SAMPLE_RATE_HZ)))
        formants_hz = VOWELS_HZ[rng.integers(len(VOWELS_HZ))]
        parts.append(_vowel(pitch_hz, formants_hz, rng.uniform(0.1, 0.25)))
    return np.concatenate(parts).astype(np.float32)


def _vowel(pitch_hz: float, formants_hz: tuple[int, int], duration_s: float) -> np.ndarray:
    time_s = np.arange(int(duration_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    wav_S = np.zeros_like(time_s)
    for harmonic in range(1, int(4000 / pitch_hz)):
        hz = harmonic * pitch_hz
        gain = sum(np.exp(-(((hz - f) / 120) ** 2)) for f in formants_hz) + 0.01
        wav_S += gain * np.sin(2 * np.pi * hz * time_s)
    return 0.2 * wav_S * np.hanning(len(wav_S))


def make_text_lm(folder: Path) -> None:
    """A two-layer LLaMA with 64 text tokens, in Hugging Face format."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    for name, weight in sorted(model.named_parameters()):
        if weight.dim() > 1:
            weight.data.normal_(0, 0.05, generator=generator)
        else:
            weight.data.fill_(1.0 if "norm" in name else 0.0)
    weights = {
        n: w.detach().contiguous() for n, w in model.named_parameters() if "lm_head" not in n
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=1, sort_keys=True))


def main(argv: Sequence[str] | None = None) -> None:
    """Make the material below a folder."""
    parser = argparse.ArgumentParser(prog="python recipes/smoke_material.py", description=__doc__)
    parser.add_argument(
        "--to", type=Path, default=Path("material/smoke"), help="folder to write to"
    )
    make_material(Path(os.fspath(parser.parse_args(argv).to)))


if __name__ == "__main__":
    main()
