"""Fixtures of several folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.orchestrator.scheduler import Answers, answers_in


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """What the scheduler says."""
    return answers_in(tmp_path / "bin", monkeypatch)
