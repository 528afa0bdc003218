"""tSC of Spoken StoryCloze (`cloze`)."""

from __future__ import annotations

from pathlib import Path

from jobs.scoring.suites.cloze import figures, open_cloze
from jobs.scoring.suites.suite import Suite

__all__ = ("NAME", "figures", "open_layout")

NAME = "tSC"


def open_layout(root: Path) -> Suite:
    """Read the suite. Raises RequestError where it is not there, DataError where it is damaged."""
    return open_cloze("tsc", NAME, root)
