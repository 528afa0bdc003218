"""A real run goes from a path to S3 in the middle of its training, ends there, and comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.conftest import BUCKET
from tests.integration.moves import elsewhere, name_of, require_whole, stopped_in_training
from tests.integration.notices import wait_for
from tests.smoke import RECIPE, Smoke

pytestmark = pytest.mark.slow


def test_a_run_moves_in_the_middle_of_its_training(
    s3: dict[str, str], calm: tuple[Smoke, str], material: Path, tmp_path: Path
) -> None:
    here = stopped_in_training(tmp_path / "here", material, calm[0])
    run, url = name_of(here), f"s3://{BUCKET}/moved"
    there = elsewhere(tmp_path / "there", material, url)
    folder = str(here.folder / "store" / "runs" / run)
    moved = there.orchestrator("resume", folder)
    assert "is at work; it is asked to save and stop" in moved.stderr
    assert here.wait_gone() == []
    wait_for(lambda: there.status(run)["state"] != "running", 900)
    require_whole(there, url, calm[0])
    assert here.status(run)["state"] == "cancelled"
    assert f"moved to {url}/runs/{run}" in here.orchestrator("status").stdout
    refused = here.orchestrator("submit", str(RECIPE), "--set", "sweep={}", check=False)
    assert refused.returncode == 2
    assert f"moved to {url}/runs/{run}" in refused.stderr
    assert "everything is done" in here.orchestrator("resume", run).stderr, "it moves back"
    require_whole(here, str(here.folder / "store"), calm[0])
    assert there.wait_gone() == []
