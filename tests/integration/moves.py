"""Runs that move between stores; a drill: the old one is frozen, and lives on after the move.

Training stops itself after its seventh step, so that a move always finds it in the middle.
"""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from jobs.training.heartbeat import LIVE
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage
from tests.integration.conftest import BUCKET
from tests.integration.notices import wait_for
from tests.smoke import Smoke

pytestmark = pytest.mark.slow
HANG = {"ORCHESTRATOR_FAULT": json.dumps({"kind": "hang", "rank": 0, "step": 7})}
UNITS = ("train", "perplexity", "continuations")
"""Stages after those that give units."""


def stopped_in_training(folder: Path, material: Path, calm: Smoke, **cluster: object) -> Smoke:
    """A run on a path whose training has saved and does no more."""
    retry = {"notice_s": 1, "heartbeat_timeout_s": 6}
    smoke = Smoke.create(folder, material, {**os.environ, **HANG}, retry=retry, **cluster)
    smoke.take_artifacts(calm, *UNITS)
    smoke.submit("--set", "sweep={}")
    wait_for(lambda: has_stopped(smoke))
    assert list(folder.glob("store/artifacts/train/*/checkpoints/*/MANIFEST.json"))
    return smoke


def has_stopped(smoke: Smoke) -> bool:
    """Whether a process of the run has stopped itself."""
    for process in smoke.processes():
        with suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_STOPPED:
                return True
    return False


def name_of(smoke: Smoke) -> str:
    """The one run of a store on a path."""
    (folder,) = (smoke.folder / "store" / "runs").iterdir()
    return folder.name


def elsewhere(folder: Path, material: Path, url: str) -> Smoke:
    """A cluster file with another store."""
    return Smoke.create(folder, material, dict(os.environ), store=url)


def require_whole(smoke: Smoke, url: str, calm: Smoke) -> None:
    """A run that has moved to this store has the calm run's bytes, as if it had been there."""
    (run,) = Storage(f"{url}/runs").children()
    assert smoke.status(run)["state"] == "succeeded"
    assert json.loads(smoke.orchestrator("verify", run, "--json").stdout)["ok"]
    artifacts = Storage(f"{url}/artifacts")
    made = {p: d for p, d in calm.fingerprint().items() if artifacts.exists(p)}
    assert {path.split("/")[0] for path in made} == {"tokenize", "pack", "train"}
    assert {path: artifacts.digest(path) for path in made} == made
    folder = RunFolder(Storage(f"{url}/runs/{run}"))
    (train,) = (i for i in folder.plan().leaders if i.stage == "train")
    before, after = folder.attempts(train.id)
    assert (before.end or {})["state"] == "cancelled"
    assert after.storage.read_json(LIVE)["resumed_from"], "the checkpoint was copied"


def test_who_was_frozen_learns_of_the_move_and_ends(
    s3: dict[str, str], calm: tuple[Smoke, str], material: Path, tmp_path: Path
) -> None:
    """Nobody can be asked to stop; what they do later counts for nothing. Then all moves back."""
    here = stopped_in_training(tmp_path / "here", material, calm[0])
    run, url = name_of(here), f"s3://{BUCKET}/frozen"
    frozen = here.processes()
    for process in frozen:
        process.send_signal(signal.SIGSTOP)
    there = elsewhere(tmp_path / "there", material, url)
    moved = there.orchestrator("resume", str(here.folder / "store" / "runs" / run), "--watch")
    assert "still not stopped" in moved.stderr
    require_whole(there, url, calm[0])
    for process in frozen:
        process.send_signal(signal.SIGCONT)
    assert here.wait_gone() == []
    require_whole(there, url, calm[0])
    back = here.orchestrator("resume", f"{url}/runs/{run}", "--watch")
    assert "everything is done" in back.stderr
    require_whole(here, str(here.folder / "store"), calm[0])
