"""Says how often a model of spoken language identification is right: precision, recall, confusion.

    python -m benchmarks.language_id --model FOLDER --speech material/speech/prompts

In: a folder with a folder of recordings for each language, as the demo's material has them. Only
recordings of at least ``--min-s`` are heard. Out: for the wanted language, precision and recall at
several thresholds of its probability; then who was taken for what.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from jobs.audio.decode import AUDIO_SUFFIXES, BLOCK_S, UnreadableAudioError, Wave, blocks
from jobs.audio.language_id import Identified, LanguageId, Spread, identify, whisper
from jobs.audio.voice_activity import Detector, Silero, speech
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import VoiceActivity

THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
_SHOWN = 8


class Heard(NamedTuple):
    """What was said about a recording."""

    true: str
    seconds: float
    said: Identified


class Score(NamedTuple):
    """Of one threshold."""

    precision: float
    recall: float


def score(heard: Sequence[Heard], wanted: str, threshold: float) -> Score:
    """Kept is what has at least this probability of the wanted language; 1 where nothing can be."""
    kept = [h.true == wanted for h in heard if h.said.wanted >= threshold]
    num_wanted = sum(h.true == wanted for h in heard)
    return Score(
        sum(kept) / len(kept) if kept else 1.0, sum(kept) / num_wanted if num_wanted else 1.0
    )


def confusion(heard: Sequence[Heard]) -> str:
    """A table: a row for each language that was spoken, a column for each that was said."""
    said = [name for name, _ in Counter(h.said.language for h in heard).most_common(_SHOWN)]
    lines = ["| spoken | " + " | ".join(said) + " | other | recordings |"]
    lines.append("|---|" + "---|" * (len(said) + 2))
    for true in sorted({h.true for h in heard}):
        counts = Counter(h.said.language for h in heard if h.true == true)
        cells = [counts[name] for name in said]
        row = [true, *cells, counts.total() - sum(cells), counts.total()]
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def hear(root: Path, model: LanguageId, wanted: str, min_s: float, every: int) -> Iterator[Heard]:
    """Every so many recordings of each language's folder, those that are too short left out."""
    detector = Silero()
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
        for file in files[::every]:
            try:
                waves = list(blocks(file))
            except UnreadableAudioError:
                continue
            seconds = sum(map(len, waves)) / SAMPLE_RATE_HZ
            said = seconds >= min_s and identify(_windows(waves, detector), model, [wanted])
            if said:
                yield Heard(folder.name, seconds, said)


def _windows(waves: Sequence[Wave], detector: Detector) -> list[Wave]:
    spread, stretches = Spread(), list(speech(waves, detector, VoiceActivity()))
    for number, wav_S in enumerate(waves):
        start_s, end_s = number * BLOCK_S, (number + 1) * BLOCK_S
        inside = (min(s.end_s, end_s) - max(s.start_s, start_s) for s in stretches)
        spread.offer(wav_S, sum(length for length in inside if length > 0))
    return spread.windows()


def main() -> None:
    """Print the tables."""
    options = _parse()
    torch.set_num_threads(options.threads)
    model = whisper(options.model, options.device, options.threads)
    begun_s = time.monotonic()
    heard = list(hear(options.speech, model, options.wanted, options.min_s, options.every))
    hours, took_s = sum(h.seconds for h in heard) / 3600, time.monotonic() - begun_s
    print(
        f"{len(heard)} recordings of at least {options.min_s:g} s, {hours:.2f} h, in {took_s:.0f} s"
    )
    print(f"\n| threshold for {options.wanted} | precision | recall |\n|---|---|---|")
    for threshold in THRESHOLDS:
        precision, recall = score(heard, options.wanted, threshold)
        print(f"| {threshold} | {precision:.3f} | {recall:.3f} |")
    print(f"\n{confusion(heard)}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language_id", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="Whisper, in either format")
    parser.add_argument("--speech", type=Path, required=True, help="a folder for each language")
    parser.add_argument("--wanted", default="en", help="language that precision and recall are of")
    parser.add_argument("--min-s", type=float, default=3.0)
    parser.add_argument("--every", type=int, default=1, help="only every so many recordings")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
