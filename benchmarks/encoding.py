"""Audio seconds a second of HuBERT base to layer 6, against what transformers offers, interleaved.

``python -m benchmarks.encoding [--audio FOLDER]``. Rivals: transformers' model cut at the layer,
one wave at a time and in padded batches; and the rate at which this machine multiplies matrices,
for the same operations. Audio is read from files in all of them; without a folder it is made up,
of the lengths that utterances have. Weights are random, of the real shapes. Of ours it is said what
share of the machine's cores idled meanwhile: run nothing beside it.

Then units: how many differ from those of transformers' features, of how many ties, and what padded
batches of transformers do to them. With ``--family``, units alone, of every architecture in its
real shape, for waves of 0.1 to 30 s in batches of 1 to 32. With ``--codebooks``, what one pass and
the nearest centroids of four codebooks of one layer take over a pass and those of one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
import torch
from torch import Tensor

from benchmarks.encoders import FAMILY, HUBERT_BASE, flops, hidden, noise_of, random_model
from jobs.audio.decode import AUDIO_SUFFIXES, UnreadableAudioError, decode
from jobs.speech.grid import plan_batches
from jobs.speech.lloyd import nearest
from jobs.speech.speech_encoder import SpeechEncoder, Wave
from jobs.speech.utterances import batches
from orchestrator.quantities import SAMPLE_RATE_HZ

LAYER = 6
NUM_CLUSTERS = 500
_SIDE, _PRODUCTS = 2048, 8
_BATCHES = (1, 2, 5, 32)
_REFERENCE = "transformers, one by one"
Encoding = Callable[[Sequence[Path]], list[Tensor]]


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audio", type=Path, help="a folder of speech, in whatever formats")
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--family", action="store_true", help="units of all architectures alone")
    parser.add_argument("--codebooks", action="store_true", help="four codebooks in one pass")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.family:
        compare_family()
        return
    model = random_model(HUBERT_BASE, LAYER)
    with tempfile.TemporaryDirectory() as scratch:
        files = (
            some_of(options.audio, options.minutes)
            if options.audio
            else list(made_up(Path(scratch), options.minutes))
        )
        (compare_codebooks if options.codebooks else compare)(model, files, options.rounds)


def compare(model: Any, files: Sequence[Path], rounds: int) -> None:
    """Print rates, ratios with their spread over the rounds, and differences of units."""
    encoder = SpeechEncoder(model, LAYER)
    ways: dict[str, Encoding] = {
        _REFERENCE: lambda paths: one_by_one(model, paths),
        "transformers, padded": lambda paths: padded(model, paths),
        "ours": lambda paths: ours(encoder, paths),
    }
    seconds = sum(len(wave_of(path)) for path in files) / SAMPLE_RATE_HZ
    print(f"{seconds:.0f} s of audio in {len(files)} files, {torch.get_num_threads()} threads")
    took: dict[str, list[float]] = {name: [] for name in ways}
    shares, idle, feats = [], [], {}
    for _ in range(rounds):
        flops_per_s = matmul_rate()
        for name, way in ways.items():
            psutil.cpu_percent()
            started = time.perf_counter()
            feats[name] = way(files)
            took[name].append(time.perf_counter() - started)
        idle.append(1 - psutil.cpu_percent() / 100)  # since ours began, which is the last
        needed = sum(flops(model.config, LAYER, len(feats_TD)) for feats_TD in feats["ours"])
        shares.append(needed / took["ours"][-1] / flops_per_s)
    for name, all_s in took.items():
        ratios = [one / other for one, other in zip(all_s, took["ours"], strict=True)]
        rate = f"{seconds / statistics.median(all_s):6.1f} audio s/s"
        print(f"{name:26} {rate}; ours over it {spread(ratios)}")
    print(f"ours of the machine's rate in matrix products: {spread(shares)}")
    print(f"the machine's cores idled, meanwhile: {spread(idle)} of the time")
    print_units(feats)


def print_units(feats: dict[str, list[Tensor]]) -> None:
    """How many units are others than those of transformers' features one by one."""
    reference_ND = torch.cat(feats[_REFERENCE])
    rows = torch.linspace(0, len(reference_ND) - 1, NUM_CLUSTERS).long()
    found = {name: nearest(torch.cat(parts), reference_ND[rows]) for name, parts in feats.items()}
    expected = found.pop(_REFERENCE)
    print(f"{len(reference_ND)} units, {int(expected.is_tie_N.sum())} of them ties")
    for name, units in found.items():
        is_other_N = units.index_N != expected.index_N
        clear = int((is_other_N & ~(units.is_tie_N | expected.is_tie_N)).sum())
        print(f"{name:26} {int(is_other_N.sum())} other units, {clear} of them no ties")


def compare_codebooks(model: Any, files: Sequence[Path], rounds: int) -> None:
    """Print what CPU time a pass takes with four codebooks' nearest centroids, over one's."""
    encoder = SpeechEncoder(model, LAYER)
    feats_ND = torch.cat(ours(encoder, files))
    codebooks = [
        feats_ND[torch.linspace(n, len(feats_ND) - 1, NUM_CLUSTERS).long()] for n in range(4)
    ]
    ratios = []
    for _ in range(rounds):
        took = []
        for some in (codebooks[:1], codebooks):
            started = time.process_time()
            found_ND = torch.cat(ours(encoder, files))
            for centroids_KD in some:
                nearest(found_ND, centroids_KD)
            took.append(time.process_time() - started)
        ratios.append(took[1] / took[0])
    print(f"four codebooks of {NUM_CLUSTERS} take {spread(ratios)} of the time of one")


def compare_family() -> None:
    """Print for each architecture how many units are others than those of waves one by one."""
    rng = np.random.default_rng(0)
    seconds = (0.1, 30.0, *rng.uniform(0.1, 6, 30))
    waves = [noise_of(rng, length_s) for length_s in seconds]
    for name in FAMILY:
        model = random_model(name, LAYER + 1)
        encoder = SpeechEncoder(model, LAYER)
        with torch.inference_mode():
            alone = [hidden(model, torch.from_numpy(wav_S)[None], LAYER)[0] for wav_S in waves]
        feats: dict[str, list[Tensor]] = {_REFERENCE: alone}
        for size in _BATCHES:
            feats[f"batches of {size}"] = [
                feats_TD
                for start in range(0, len(waves), size)
                for feats_TD in encoder.features(waves[start : start + size])
            ]
        print(name)
        print_units(feats)


def ours(encoder: SpeechEncoder, files: Sequence[Path]) -> list[Tensor]:
    """As the stages do: batches of what is read ahead."""
    feats = [torch.empty(0)] * len(files)
    for numbers, batch in batches(map(wave_of, files), encoder.max_padded_samples):
        for number, feats_TD in zip(numbers, encoder.features(batch), strict=True):
            feats[number] = feats_TD
    return feats


def one_by_one(model: Any, files: Sequence[Path]) -> list[Tensor]:
    """What most scripts do."""
    with torch.inference_mode():
        return [hidden(model, torch.from_numpy(wave_of(path))[None], LAYER)[0] for path in files]


def padded(model: Any, files: Sequence[Path]) -> list[Tensor]:
    """Batches as large as ours, of similar lengths, with the model's own mask."""
    waves = [wave_of(path) for path in files]
    feats = [torch.empty(0)] * len(waves)
    for batch in plan_batches([len(w) for w in waves], 16 * SAMPLE_RATE_HZ):
        wav_BS = torch.nn.utils.rnn.pad_sequence(
            [torch.from_numpy(waves[i]) for i in batch], batch_first=True
        )
        lengths_B = torch.tensor([len(waves[i]) for i in batch])
        is_wave_BS = (torch.arange(wav_BS.shape[1]) < lengths_B[:, None]).long()
        with torch.inference_mode():
            feats_BTD = hidden(model, wav_BS, LAYER, attention_mask=is_wave_BS)
        frames = model._get_feat_extract_output_lengths(lengths_B).tolist()
        for i, feats_TD, num_frames in zip(batch, feats_BTD, frames, strict=True):
            feats[i] = feats_TD[:num_frames]
    return feats


def matmul_rate() -> float:
    """Operations a second of large products in fp32."""
    first, second = torch.randn(2, _SIDE, _SIDE)
    started = time.perf_counter()
    for _ in range(_PRODUCTS):
        first @ second
    return _PRODUCTS * 2 * _SIDE**3 / (time.perf_counter() - started)


def wave_of(path: Path) -> Wave:
    """A file as the stages hear it."""
    return decode(path)


def some_of(folder: Path, minutes: float) -> list[Path]:
    """Files below a folder that can be read, by their names, until they are long enough together.

    Those of less than a second are left out.
    """
    chosen, missing = [], 60 * minutes * SAMPLE_RATE_HZ
    for path in sorted(p for p in folder.rglob("*") if p.suffix in AUDIO_SUFFIXES):
        try:
            num_samples = len(wave_of(path))
        except UnreadableAudioError:
            continue
        if num_samples >= SAMPLE_RATE_HZ:
            chosen.append(path)
            missing -= num_samples
        if missing <= 0:
            break
    return chosen


def made_up(folder: Path, minutes: float) -> Iterator[Path]:
    """Files of `noise_of`, 1 to 16 s long."""
    rng = np.random.default_rng(0)
    ends = np.cumsum(rng.uniform(1, 16, int(60 * minutes)))
    for start, end in pairwise([0.0, *ends[ends < 60 * minutes]]):
        path = folder / f"{start:09.3f}.wav"
        soundfile.write(path, noise_of(rng, end - start), SAMPLE_RATE_HZ)
        yield path


def spread(values: Sequence[float]) -> str:
    """The median and the range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
