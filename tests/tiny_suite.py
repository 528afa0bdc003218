"""A suite in the layout of sWUGGY, of synthetic syllables: what scoring reads, no real speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from orchestrator.quantities import SAMPLE_RATE_HZ
from recipes.smoke_material import babble

HEADER = "filename,id,voice,frequency,word,phones,length,correct"
VOICES = ("low", "high")


def make_tiny_suite(root: Path, *, num_pairs: int = 4) -> list[Path]:
    """Write ``root/lexical/dev``: pairs in two voices, of about half a second each; the WAVs."""
    folder, rows = root / "lexical" / "dev", [HEADER]
    folder.mkdir(parents=True)
    made = []
    for pair in range(num_pairs):
        for voice in VOICES:
            for is_word in (1, 0):
                number = len(made)
                wav_S = babble(np.random.default_rng(1000 + number), syllables=2 + number % 3)
                made.append(folder / f"{number:02d}.wav")
                soundfile.write(made[-1], wav_S, SAMPLE_RATE_HZ, subtype="PCM_16")
                text = f"{'word' if is_word else 'wurd'}{pair}"
                rows.append(f"{number:02d},{pair},{voice},{pair},{text},{text},4,{is_word}")
    (folder / "gold.csv").write_text("\n".join([*rows, ""]))
    return made
