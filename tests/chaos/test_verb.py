"""One fault of the drill in verb.py, and what the run says of it afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.verb import start, strike
from tests.smoke import Smoke

pytestmark = pytest.mark.slow


def test_a_killed_rank_is_overcome_and_accounted_for(
    calm: tuple[Smoke, str], material: Path, tmp_path: Path
) -> None:
    smoke, run = start(tmp_path / "s", material, calm[0])
    outcome = strike(smoke, run, "rank")
    assert outcome["cause"] == "worker_lost"
    assert 0 <= outcome["steps_lost"] <= 200  # an interval, and what a beat had not told
    assert outcome["resumed_from"].endswith("-a0001")
    goodput = smoke.status(run)["goodput"]
    parts = [seconds for name, seconds in goodput.items() if name.endswith("_s")]
    assert sum(parts) == pytest.approx(2 * goodput["elapsed_s"])  # the parts, and their sum
    assert goodput["restart_s"] > 0
    assert 0 < goodput["ettr"] < 1
    assert b"orchestrator_train_step" in (
        smoke.orchestrator("status", run, "--openmetrics").stdout.encode()
    )
    missing = smoke.orchestrator("chaos", run, "--kill", "rank", "--rank", "7", check=False)
    assert missing.returncode == 2
    assert "this training has ranks 0..1" in missing.stderr
    smoke.orchestrator("cancel", run)
    assert smoke.wait_gone() == []
