"""Small suites in official layouts, made by hand: opaque files, gold rows, log-probabilities."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

LEXICAL = ("filename", "id", "voice", "frequency", "word", "phones", "length", "correct")
PROSODIC = ("filename", "id", "voice", "type", "subtype", "correct")
SYNTACTIC = ("filename", "id", "voice", "type", "subtype", "transcription", "correct")

Rows = list[dict[str, str]]


def write_part(folder: Path, header: Iterable[str], rows: Rows) -> None:
    """A folder with a gold file and the audio it names, of a size that tells files apart."""
    folder.mkdir(parents=True, exist_ok=True)
    write_gold(folder / "gold.csv", header, rows)
    for n, row in enumerate(rows):
        (folder / f"{row['filename']}.wav").write_bytes(b"RIFF" + bytes(n))


def write_wavs(folder: Path, stems: Iterable[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        (folder / f"{stem}.wav").write_bytes(b"RIFF")


def write_gold(file: Path, header: Iterable[str], rows: Rows) -> None:
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(header))
        writer.writeheader()
        writer.writerows(rows)


FREQUENCIES = ("0", "1", "4", "5", "6", "19", "20", "21", "99", "100", "101")
"""Around every edge of the official bands, and out of vocabulary."""
VOICES = ("A", "B", "C", "D")


def lexical_rows(*, num_ids: int = 24, spelt: bool = True) -> Rows:
    """Words of every frequency, in 1 to 4 voices; non-words with or without a spelling."""
    rows = []
    for n in range(num_ids):
        for voice in VOICES[: 1 + n % 4]:
            word = {
                "id": str(n + 1),
                "voice": voice,
                "frequency": FREQUENCIES[n % len(FREQUENCIES)],
                "length": str(3 + n % 5),
            }
            rows.append(
                word
                | {"filename": f"w{n}{voice}", "word": f"wort{n}", "phones": f"w {n}"}
                | {"correct": "1"}
            )
            rows.append(
                word
                | {"filename": f"n{n}{voice}", "word": f"wurt{n}" if spelt else ""}
                | {"phones": f"n {n}", "frequency": "", "correct": "0"}
            )
    return rows


TYPES = {"agreement": 7, "binding": 3, "order": 12}
"""Of unequal sizes, so that the means over pairs and over types differ."""


def syntactic_rows() -> Rows:
    """Ids that begin anew with each subtype, as the official ones do."""
    rows = []
    for kind, size in TYPES.items():
        for n in range(size):
            for voice in VOICES[: 1 + n % 3]:
                sentence = {
                    "id": str(n // 2 + 1),
                    "voice": voice,
                    "type": kind,
                    "subtype": f"{kind}-{n % 2}",
                }
                for correct, stem in (("1", "s"), ("0", "x")):
                    name = f"{stem}{kind}{n}{voice}"
                    rows.append(
                        sentence
                        | {"filename": name, "transcription": f"{stem} {kind} {n}"}
                        | {"correct": correct}
                    )
    return rows


def prosodic_rows() -> Rows:
    """Ids of both types, in 1 or 2 voices; those of `lexical` twice in the first."""
    rows = []
    for kind, size in (("protosyntax", 4), ("lexical", 6)):
        for n in range(size):
            voices = [*VOICES[: 1 + n % 2], *(["A"] if kind == "lexical" else [])]
            for take, voice in enumerate(voices):
                pause = {"id": str(n), "voice": voice, "type": kind, "subtype": kind}
                for correct, stem in (("1", "s"), ("0", "x")):
                    name = f"{stem}{kind}{n}{take}{voice}"
                    rows.append(pause | {"filename": name, "correct": correct})
    return rows


def baby_rows() -> Rows:
    """Words with 1 to 3 non-words in 1 or 2 voices, as many in each; a row for each non-word."""
    rows, number = [], 0
    for n in range(14):
        for _ in range(1 + n % 3):
            number += 1
            for voice in VOICES[: 1 + n % 2]:
                word = {
                    "id": str(number),
                    "voice": voice,
                    "frequency": FREQUENCIES[n % len(FREQUENCIES)],
                    "length": str(3 + n % 4),
                }
                spelt = {"filename": f"word{n}-{voice}", "word": f"word{n}", "phones": f"w {n}"}
                rows.append(word | spelt | {"correct": "1"})
                unspelt = {"filename": f"n_{number}-{voice}", "word": "", "phones": f"n {number}"}
                rows.append(word | unspelt | {"frequency": "", "correct": "0"})
    return rows


def log_probs_of(files: Mapping[str, str], *, seed: int = 0) -> dict[str, float]:
    """Numbers that look like log-probabilities, on a grid coarse enough for many ties."""
    rng = random.Random(seed)
    return {name: -rng.randrange(8, 16) / 4 for name in files}
