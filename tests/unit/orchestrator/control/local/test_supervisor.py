"""One supervisor a run on this machine."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from orchestrator.errors import LeaseHeldError
from orchestrator.ledger.lease import held
from tests.unit.orchestrator.control.local.scene import Scene


def supervision(scene: Scene, timeout_s: float = 60) -> AbstractContextManager[Callable[[], None]]:
    return held(scene.run.supervision, holder="small", timeout_s=timeout_s)


def test_only_one_supervisor_at_a_time(scene: Scene) -> None:
    def supervise() -> None:
        with supervision(scene):
            pass

    with supervision(scene), pytest.raises(LeaseHeldError):
        supervise()
    supervise()


def test_a_second_supervisor_leaves_at_once(scene: Scene) -> None:
    argv = [
        *(sys.executable, "-m", "orchestrator.control.local.supervisor"),
        *("--store", scene.store.storage.url, "--run", "small"),
    ]
    with supervision(scene):
        done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, scene.run.supervisors()) == (0, ())
    assert "held by small (lease 1); nothing to do" in done.stderr


def test_the_lease_is_kept_while_it_is_held(scene: Scene) -> None:
    with supervision(scene, timeout_s=0.06) as beat:
        lease = "lease/000001.json"
        before = scene.run.supervision.read_json(lease)["heartbeat_at"]
        time.sleep(0.05)
        beat()
        assert scene.run.supervision.read_json(lease)["heartbeat_at"] > before
