"""A run on Slurm."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.orchestrator.control.slurm.scene import Scene
from tests.unit.orchestrator.scheduler import Answers


@pytest.fixture
def scene(tmp_path: Path, answers: Answers) -> Scene:
    return Scene(tmp_path, answers)
