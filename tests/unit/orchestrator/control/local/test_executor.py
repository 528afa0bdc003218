"""A run on this machine: its supervisor's command, and what becomes of starts and cancels."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path

import pytest

from orchestrator.control.code_snapshot import code_origin, code_snapshot
from orchestrator.control.local.executor import LocalExecutor, absent_trackers
from orchestrator.errors import BackendError, RunFailedError
from orchestrator.ledger.lease import Process, acquire
from orchestrator.spec.recipe import Tracking
from tests.unit.orchestrator.control.local.scene import Scene


def test_a_supervisor_outlives_whoever_submits_it(tmp_path: Path) -> None:
    scene = Scene(tmp_path, environment={"venv": "/opt/venv"})
    job = LocalExecutor().supervisor_job(scene.run, scene.store)
    assert job.argv == (
        *("/opt/venv/bin/python", "-m", "orchestrator.control.local.supervisor"),
        *("--store", str(tmp_path / "store"), "--run", "small"),
    )
    assert job.detached
    assert job.log == tmp_path / "store/runs/small/supervisor.log"
    assert job.env["PYTHONPATH"] == str(tmp_path / "store/runs/small/code")


def test_what_is_under_way_or_done_is_not_started(scene: Scene) -> None:
    record = scene.run.begin_supervisor(process=Process.current().__dict__)
    assert LocalExecutor().start(scene.run, scene.store).outcome == "running"
    assert LocalExecutor().observe([scene.run])["small"].is_alive
    record.finish(state="succeeded", cause="", reason="")
    assert not LocalExecutor().observe([scene.run])["small"].is_alive
    scene.publish_all()
    assert LocalExecutor().start(scene.run, scene.store).outcome == "done"


def test_one_that_is_about_to_announce_itself_is_waited_for(scene: Scene) -> None:
    held = acquire(scene.run.supervision, holder="another shell's", timeout_s=60)
    announces = partial(scene.run.begin_supervisor, process=Process.current().__dict__)
    threading.Timer(0.3, announces).start()
    assert LocalExecutor().start(scene.run, scene.store).outcome == "running"
    held.release()


def test_a_supervisor_that_does_not_start_shows_its_last_words(scene: Scene) -> None:
    scene.run.storage.replace("code/orchestrator/__init__.py", b"raise ImportError('broken')\n")
    with pytest.raises(BackendError) as raised:
        LocalExecutor(start_timeout_s=600).start(scene.run, scene.store)
    log = f"{scene.run.storage.url}/supervisor.log"
    assert str(raised.value) == f"small: no supervisor started (ImportError: broken); see {log}"


def test_a_run_of_complete_artifacts_is_supervised_to_its_report(tmp_path: Path) -> None:
    """The real process, on a store that both of us can only reach through its folder."""
    scene = Scene(tmp_path)
    for path, data in (code := code_snapshot()).items():
        scene.run.storage.replace(f"code/{path}", data)
    assert code_origin(code)["sha256"]
    scene.publish_all()
    assert LocalExecutor().start(scene.run, scene.store).outcome == "started"
    (supervisor,) = scene.run.supervisors()
    deadline = time.monotonic() + 60
    while scene.run.live_supervisor() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert supervisor.end["state"] == "succeeded"


def test_cancelling_waits_for_the_supervisor(scene: Scene) -> None:
    record = scene.run.begin_supervisor(process=Process.current().__dict__)
    end = threading.Timer(0.5, record.finish, kwargs={"state": "cancelled"})
    end.start()
    LocalExecutor().cancel(scene.run, None)
    assert record.end == {"state": "cancelled", "ended_at": record.end["ended_at"]}
    assert [c["stage"] for c in scene.run.cancel_requests()] == [None]


def test_cancelling_a_stage_waits_until_its_supervisor_has_done_so(scene: Scene) -> None:
    """Though the stage has no attempt yet: one may be about to begin."""
    scene.run.begin_supervisor(process=Process.current().__dict__)

    def obey() -> None:
        (request,) = scene.run.cancel_requests()
        scene.run.note_cancelled(1, request)

    threading.Timer(0.5, obey).start()
    LocalExecutor().cancel(scene.run, "train")
    (request,) = scene.run.cancel_requests()
    assert request["obeyed_at"] > request["asked_at"]


def test_a_supervisor_that_does_not_stop_is_named(tmp_path: Path) -> None:
    scene = Scene(tmp_path, retry={"notice_s": 0.1})
    scene.run.begin_supervisor(process=Process.current().__dict__)
    with pytest.raises(RunFailedError) as raised:
        LocalExecutor(cancel_slack_s=0.1).cancel(scene.run, None)
    assert str(raised.value) == ("small: still not stopped after 0 s; see `orchestrator status`")


def test_a_tracker_without_its_package_is_refused_by_name() -> None:
    mlflow = Tracking.model_validate({"mlflow": {"experiment": "speech"}})
    both = Tracking.model_validate({"wandb": {"project": "p"}, "mlflow": {"experiment": "speech"}})
    assert list(absent_trackers([Tracking(), mlflow, both], lambda name: name == "mlflow")) == [
        "this Python: wandb not installed, which tracking.wandb asks for; pip install '.[tracking]'"
    ]
    assert list(absent_trackers([Tracking()], lambda _: False)) == []
