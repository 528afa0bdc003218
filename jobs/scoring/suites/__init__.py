"""Suites of pairs in their official layouts, with their official scores; no model is in here.

One module for each suite, named as recipes name it. Each has ``NAME`` (as papers name it),
``open_layout(root)``, which reads a folder, and ``figures(items)``, which says what its official
numbers are means of. Adding a suite is adding its module and its name in `KINDS`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from jobs.scoring.suites.suite import Suite
from orchestrator.errors import RequestError

KINDS = ("swuggy", "sblimp", "prosaudit", "ssc", "tsc", "salmon", "babyslm")


def layout(kind: str) -> ModuleType:
    """The module of a suite. Raises RequestError for a name that is none."""
    if kind not in KINDS:
        raise RequestError(f"suite: there is no {kind!r}; use one of {', '.join(KINDS)}")
    return importlib.import_module(f"{__name__}.{kind}")


def open_suite(kind: str, folder: str | Path) -> Suite:
    """The suite of a kind that a folder holds in its official layout.

    Raises RequestError where the folder does not hold it, saying where it comes from and where it
    goes, and DataError, with file and row, where what it holds is damaged.
    """
    opened: Suite = layout(kind).open_layout(Path(folder))
    return opened
