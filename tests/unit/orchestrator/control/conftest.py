"""Fixtures of several modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.orchestrator import broken


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A recipe and a cluster with everything the recipe needs."""
    for model in ("hubert", "tiny-lm"):
        (tmp_path / model).mkdir()
        (tmp_path / model / "config.json").write_text("{}")
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "a.wav").write_bytes(b"1234")
    (tmp_path / "r.yaml").write_text(broken.RECIPE)
    (tmp_path / "c.yaml").write_text(broken.CLUSTER)
    return tmp_path
