"""Fixtures of several modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.orchestrator import broken


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A recipe and a cluster with everything the recipe needs."""
    broken.SOUND.write(tmp_path)
    (tmp_path / "speech" / "a.wav").write_bytes(b"1234")
    return tmp_path
