"""A run on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.orchestrator.control.local.scene import Scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)
