"""Says how well voice activity finds speech whose times are known, and how fast.

    python -m benchmarks.voice_activity --minutes 60

Festival's voices say sentences (their phone times are exact) with pauses of 0.5 to 20 s between
them; noise is added at each ratio of speech to noise. Out, a row for each: precision and recall of
frames of 10 ms, without and with a collar of 0.2 s, which padding is for; how far beginnings and
ends lie from the true ones; times real time on one core. A last row has noise alone.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.unit_quality import Spoken, load_spoken, speak
from jobs.audio.decode import BLOCK_S, Wave
from jobs.audio.voice_activity import Detector, Silero, Stretch, speech
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import VoiceActivity

FRAME_S = 0.01
COLLAR_S = 0.2
GAPS_S = (0.5, 20.0)
RATIOS_DB = (40.0, 20.0, 10.0, 0.0)
Frames = npt.NDArray[np.bool_]


class Known(NamedTuple):
    """A recording and when there is speech in it."""

    wav_S: Wave
    stretches: list[Stretch]


class Score(NamedTuple):
    """How what was found agrees with what is known."""

    precision: float
    recall: float
    precision_collar: float
    recall_collar: float
    onset_ms: npt.NDArray[np.float64]
    """Found minus true beginning of each stretch."""
    offset_ms: npt.NDArray[np.float64]


def assemble(spoken: Sequence[Spoken], seconds: float, min_pause_s: float, seed: int) -> Known:
    """Sentences in any order with pauses between them; pauses shorter than that are speech."""
    rng = np.random.default_rng(seed)
    waves, stretches, at_s = [], [], 0.0
    while at_s < seconds:
        one = spoken[int(rng.integers(len(spoken)))]
        gap_S = np.zeros(int(rng.uniform(*GAPS_S) * SAMPLE_RATE_HZ), np.float32)
        at_s += len(gap_S) / SAMPLE_RATE_HZ
        stretches += [Stretch(at_s + a, at_s + b) for a, b in _said(one, min_pause_s)]
        waves += [gap_S, one.wav_S]
        at_s += len(one.wav_S) / SAMPLE_RATE_HZ
    return Known(np.concatenate(waves), stretches)


def _said(spoken: Spoken, min_pause_s: float) -> Iterator[tuple[float, float]]:
    said = [(phone.start_s, phone.end_s) for phone in spoken.phones if phone.label]
    first_s, last_s = said[0]
    for start_s, end_s in said[1:]:
        if start_s - last_s >= min_pause_s:
            yield first_s, last_s
            first_s = start_s
        last_s = end_s
    yield first_s, last_s


def noisy(known: Known, ratio_db: float, seed: int) -> Wave:
    """With white noise; the ratio is that of the speech, without its pauses, to it."""
    is_speech_S = as_frames(known.stretches, len(known.wav_S), 1 / SAMPLE_RATE_HZ)
    level = np.sqrt(np.square(known.wav_S[is_speech_S]).mean()) * 10 ** (-ratio_db / 20)
    noise_S = np.random.default_rng(seed).standard_normal(len(known.wav_S), np.float32)
    return known.wav_S + np.float32(level) * noise_S


def as_frames(stretches: Sequence[Stretch], count: int, frame_s: float = FRAME_S) -> Frames:
    """Which frames are in a stretch."""
    is_in_T = np.zeros(count, bool)
    for start_s, end_s in stretches:
        is_in_T[round(start_s / frame_s) : round(end_s / frame_s)] = True
    return is_in_T


def score(found: Sequence[Stretch], known: Known) -> Score:
    """Frames and boundaries; boundaries of stretches that overlap with one that was found."""
    count = int(len(known.wav_S) / SAMPLE_RATE_HZ / FRAME_S)
    true_T, found_T = as_frames(known.stretches, count), as_frames(found, count)
    overlapping = [(_overlapping(s, found), s) for s in known.stretches]
    pairs = [(f, s) for f, s in overlapping if f is not None]
    return Score(
        precision=float(true_T[found_T].mean()) if found_T.any() else 1.0,
        recall=float(found_T[true_T].mean()) if true_T.any() else 1.0,
        precision_collar=_within(found_T, true_T),
        recall_collar=_within(true_T, found_T),
        onset_ms=np.array([1000 * (f.start_s - s.start_s) for f, s in pairs]),
        offset_ms=np.array([1000 * (f.end_s - s.end_s) for f, s in pairs]),
    )


def _overlapping(stretch: Stretch, found: Sequence[Stretch]) -> Stretch | None:
    """All that was found of a stretch, from the first to the last."""
    parts = [f for f in found if f.start_s < stretch.end_s and f.end_s > stretch.start_s]
    return Stretch(parts[0].start_s, parts[-1].end_s) if parts else None


def _within(these_T: Frames, those_T: Frames) -> float:
    """Share of these frames that lie within a collar of those."""
    width = 2 * round(COLLAR_S / FRAME_S) + 1
    near_T = np.convolve(those_T, np.ones(width), "same") > 0
    return float(near_T[these_T].mean()) if these_T.any() else 1.0


def detect(wav_S: Wave, detector: Detector, rule: VoiceActivity) -> tuple[list[Stretch], float]:
    """What is found, and seconds of audio for a second of the processor."""
    size = BLOCK_S * SAMPLE_RATE_HZ
    blocks = (wav_S[start : start + size] for start in range(0, len(wav_S), size))
    begun_s = time.process_time()
    found = list(speech(blocks, detector, rule))
    return found, len(wav_S) / SAMPLE_RATE_HZ / (time.process_time() - begun_s)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.voice_activity")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    detector, rule = Silero(), VoiceActivity()
    with tempfile.TemporaryDirectory() as scratch:
        speak(Path(scratch))
        spoken = load_spoken(Path(scratch), None)
    known = assemble(spoken, 60 * options.minutes, rule.min_pause_s, options.seed)
    print(f"{options.minutes:g} min, {len(known.stretches)} stretches of speech")
    print("| noise | precision | recall | with collar | begins, ms | ends, ms | x real time |")
    print("|---|---|---|---|---|---|---|")
    for ratio_db in RATIOS_DB:
        found, speed = detect(noisy(known, ratio_db, options.seed), detector, rule)
        print(_row(f"{ratio_db:g} dB", score(found, known), speed))
    noise = noisy(known, 0.0, options.seed) - known.wav_S
    found, _ = detect(noise, detector, rule)
    seconds = sum(s.end_s - s.start_s for s in found)
    print(f"noise alone: {seconds:.1f} s of {len(noise) / SAMPLE_RATE_HZ:.0f} s taken for speech")


def _row(name: str, score: Score, speed: float) -> str:
    collar = f"{score.precision_collar:.3f} and {score.recall_collar:.3f}"
    begins, ends = (
        f"{np.median(v):+.0f} ({np.percentile(v, 5):+.0f} to {np.percentile(v, 95):+.0f})"
        for v in (score.onset_ms, score.offset_ms)
    )
    return (
        f"| {name} | {score.precision:.3f} | {score.recall:.3f} | {collar} | {begins} | {ends} "
        f"| {speed:.0f} |"
    )


if __name__ == "__main__":
    main()
