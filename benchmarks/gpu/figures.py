"""What a row is told, what it finds, and the table of all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.encoders import noise_of
from orchestrator.quantities import SAMPLE_RATE_HZ


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every row is told."""

    device: str
    """``cuda`` or ``cpu``."""
    is_tiny: bool
    """Whether to run small, only to see that it runs."""
    audio: str = ""
    """An ``.npz`` of waves at 16 kHz; made up where empty."""

    @property
    def torch_device(self) -> torch.device:
        """As torch wants it."""
        return torch.device(self.device)

    def sized(self, real: Any, tiny: Any) -> Any:
        """One of two sizes."""
        return tiny if self.is_tiny else real

    def waves(self, seconds: float, *, longest_s: float) -> list[npt.NDArray[np.float32]]:
        """Waves of so many seconds together: those of the file, again and again, or made up."""
        given = _read(Path(self.audio)) if self.audio else _made_up(longest_s)
        most = int(longest_s * SAMPLE_RATE_HZ)
        waves, left = list[npt.NDArray[np.float32]](), int(seconds * SAMPLE_RATE_HZ)
        for wav_S in given:
            waves.append(wav_S[: min(most, left)])
            left -= len(waves[-1])
            if left <= 0:
                break
        return waves


def _read(path: Path) -> Iterator[npt.NDArray[np.float32]]:
    with np.load(path, allow_pickle=False) as arrays:
        waves = [np.ascontiguousarray(arrays[name], np.float32) for name in sorted(arrays.files)]
    if not any(map(len, waves)):
        raise ValueError(f"{path}: holds no samples; give arrays of float32 at 16 kHz")
    while True:
        yield from waves


def _made_up(longest_s: float) -> Iterator[npt.NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    while True:
        yield noise_of(rng, rng.uniform(0.1, 1) * longest_s)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table."""

    row: str
    case: str
    value: float | None
    """None where it was not measured."""
    unit: str
    share: float | None = None
    """Of what ``peak`` names."""
    peak: str = ""
    note: str = ""


class SkippedError(Exception):
    """What a row needs is not here."""


def table(figures: Sequence[Figure]) -> str:
    """Lines of equal columns; blank where nothing was measured."""
    head = ("row", "case", "value", "unit", "share", "of", "note")
    lines = [head, *(_cells(figure) for figure in figures)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
    right = {2, 4}
    return "\n".join(
        "  ".join(
            cell.rjust(width) if n in right else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(figure: Figure) -> tuple[str, ...]:
    value = "" if figure.value is None else f"{figure.value:,.4g}"
    if figure.value is not None and abs(figure.value) >= 1000:
        value = f"{figure.value:,.0f}"
    share = "" if figure.share is None else f"{figure.share:.1%}"
    return (figure.row, figure.case, value, figure.unit, share, figure.peak, figure.note)


def as_json(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """For machines."""
    return [asdict(figure) for figure in figures]
