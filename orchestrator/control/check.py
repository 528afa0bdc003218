"""One question of `orchestrator doctor`, and its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.errors import OrchestratorError


@dataclass(frozen=True)
class Check:
    """One question, its answer, and the remedy when the answer is bad."""

    name: str
    passed: bool
    detail: str
    is_optional: bool = False
    """Only some recipes need it."""


def guarded(name: str, check: Callable[[], str]) -> Check:
    """What a check says; its error is the answer when it fails."""
    try:
        return Check(name, True, check())
    except (OrchestratorError, OSError) as error:
        return Check(name, False, str(error))
