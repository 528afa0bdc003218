"""One supervisor a run on this machine."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from orchestrator.errors import LeaseHeldError
from orchestrator.ledger.lease import held
from tests.receiver import Answer, receiving
from tests.unit.orchestrator.control.local.scene import Scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


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


def supervise(scene: Scene) -> int:
    words = ("--store", scene.store.storage.url, "--run", "small")
    argv = [sys.executable, "-m", "orchestrator.control.local.supervisor", *words]
    return subprocess.run(argv, check=False).returncode


@pytest.mark.parametrize("script", [[], ["lost", 500], ["hang"], [404]])
def test_people_are_told_of_the_end_whatever_their_hook_does_to_it(
    script: list[Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving(script) as receiver:
        monkeypatch.setenv("HOOK", receiver.url)
        scene = Scene(tmp_path, notify={"webhook": "${env:HOOK}", "timeout_s": 0.5})
        scene.publish_all()
        assert supervise(scene) == 0
        (supervisor,) = scene.run.supervisors()
        assert supervisor.end is not None
        assert supervisor.end["state"] == "succeeded"
        assert receiver.told == ["done"]
        assert receiver.received[-1]["report"] == f"{scene.run.storage.url}/report.html"


def test_a_run_that_has_spent_what_it_may_ends_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving() as receiver:
        monkeypatch.setenv("HOOK", receiver.url)
        limited = {"limits": {"max_price": 5}, "prices": {"cpu_hour": 1}}
        scene = Scene(tmp_path, notify={"webhook": "${env:HOOK}"}, **limited)
        corpus = scene.run.plan().instances[0].id
        earlier = scene.run.begin_attempt(corpus, started_at=0.0, gpus=0, price_per_h=1)
        earlier.finish(ended_at=6 * 3600.0, state="cancelled", cause="cancelled", action="stop")
        assert supervise(scene) == 1
        (supervisor,) = scene.run.supervisors()
        assert supervisor.end is not None
        assert (supervisor.end["state"], supervisor.end["cause"]) == ("failed", "limit")
        assert supervisor.end["reason"] == "limits.max_price: 6 of 5 USD spent"
        assert len(scene.run.attempts(corpus)) == 1, "nothing was started"
        (failed,) = receiver.received
        assert (failed["event"], failed["cause"]) == ("failed", "limit")
        assert "orchestrator resume" in failed["remedy"]


def test_the_lease_is_kept_while_it_is_held(scene: Scene) -> None:
    with supervision(scene, timeout_s=0.06) as beat:
        lease = "lease/000001.json"
        before = scene.run.supervision.read_json(lease)["heartbeat_at"]
        time.sleep(0.05)
        beat()
        assert scene.run.supervision.read_json(lease)["heartbeat_at"] > before
