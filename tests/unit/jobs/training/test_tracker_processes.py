"""Trackers that fail, hang or are killed are events of an attempt, and cost it nothing else."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.attempt import Attempt
from jobs.training.tracker_processes import TrackerProcess, jobs_of, kinds, track_scores, tracked
from jobs.training.trackers import Kind, Tracked
from jobs.training.tracking import Job, Training
from orchestrator.ledger.attempt import CURVES, OFFLINE_CURVES, AttemptFolder
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Tracking
from tests import offline_wandb
from tests.unit.jobs.test_targets import attempt_of
from tests.unit.jobs.training.countdown import rank_config
from tests.unit.jobs.training.test_trackers import of_tensorboard
from tests.unit.orchestrator.ledger.test_extension import save
from tests.unit.orchestrator.recipes import recipe


def attempt_with(folder: Path, **tracking: Any) -> Attempt:
    """An attempt at a training with trackers; TensorBoard's folder is called ``curves``."""
    values = {f"tracking.{name}": value for name, value in tracking.items()}
    attempt = attempt_of(folder, recipe(**values))
    return replace(attempt, folder=folder / "train" / "attempts" / "0001", name="run/train")


def failures(attempt: Attempt) -> list[tuple[str, str]]:
    attempt.flush()
    events = (e for e in attempt.record.events() if e["kind"] == "tracking_failed")
    return [(e["tracker"], e["reason"]) for e in events]


def test_the_trackers_of_a_recipe(tmp_path: Path) -> None:
    assert list(kinds(attempt_with(tmp_path))) == ["tensorboard"]
    wandb, mlflow = {"project": "p"}, {"experiment": "e"}
    every = attempt_with(tmp_path, wandb=wandb, mlflow=mlflow)
    assert list(kinds(every)) == ["tensorboard", "wandb", "mlflow"]
    assert list(kinds(attempt_with(tmp_path, tensorboard=False))) == []


@pytest.mark.parametrize("url", ["{folder}/store", "memory://curves"])
def test_attempts_share_their_curves_wherever_the_store_is(tmp_path: Path, url: str) -> None:
    stage = tmp_path / "stages" / "train"
    attempt = replace(
        attempt_with(tmp_path, wandb={"project": "p"}),
        folder=stage / "attempts" / "0002",
        record=AttemptFolder(2, Storage(url.format(folder=tmp_path))),
    )
    folders = [job.tracked.folder for job in jobs_of(attempt, attempt.out)]
    assert folders == [str(stage / CURVES), str(stage / OFFLINE_CURVES)]


def test_a_training_is_followed_to_its_end(tmp_path: Path) -> None:
    attempt = attempt_with(tmp_path)
    config = rank_config(tmp_path)
    with tracked(attempt, config):
        save(attempt.artifacts[0], [3, 5], tmp_path)
    assert failures(attempt) == []
    curves = tmp_path / "train"
    (curves / "curves").symlink_to(curves / "tensorboard")
    assert [step for step, _ in of_tensorboard(curves)] == [1, 2, 3, 4, 5]


def test_scores_are_told_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    attempt = attempt_with(tmp_path, tensorboard=False, mlflow={"experiment": "speech"})
    track_scores(attempt, {"perplexity": {"valid": {"model": 7.5}, "rule": "words"}})
    assert failures(attempt) == []
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("speech")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics == {"scores/perplexity/valid/model": 7.5}


@pytest.mark.parametrize("uri", ["", "nonsense://s3cr3t", "file:///proc/s3cr3t"])
def test_one_that_fails_is_one_event_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    if uri:
        monkeypatch.setenv("SOME_URI", uri)
    mlflow = {"experiment": "e", "uri": "${env:SOME_URI}"}
    attempt = attempt_with(tmp_path, tensorboard=False, mlflow=mlflow)
    with tracked(attempt, rank_config(tmp_path)):
        save(attempt.artifacts[0], [3], tmp_path)
    ((tracker, said),) = failures(attempt)
    assert tracker == "mlflow"
    assert "SOME_URI" in said
    assert "s3cr3t" not in said


def silent_server() -> socket.socket:
    """Takes connections and never answers."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    return server


def test_one_that_was_killed_is_no_more_than_that(tmp_path: Path) -> None:
    process = TrackerProcess(job_of(tmp_path, "tensorboard"))
    process._process.kill()
    process._process.wait()
    process.finish()
    assert process.end(0, time.monotonic()) == "ended with exit code -9"


def test_one_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_server() as server:
        monkeypatch.setenv("SOME_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        process = TrackerProcess(job_of(tmp_path, "mlflow"))
        server.settimeout(60)
        connection, _ = server.accept()
        process.finish()
        started = time.monotonic()
        # Another tracker was waited for before: all of them have the same time.
        assert process.end(60, since=started - 59.5) == "was not done within 60 s"
        assert time.monotonic() - started < 5
        connection.close()


def job_of(folder: Path, kind: Kind) -> Job:
    tracking = {
        "mlflow": {"experiment": "e", "uri": "${env:SOME_URI}"},
        "wandb": {"project": "p", "mode": "offline"},
    }
    tracked = Tracked(
        id="abc",
        name="run/train",
        tracking=Tracking.model_validate(tracking),
        params={},
        folder=str(folder / "curves"),
    )
    training = Training(out_url=str(folder / "out"), record_url=str(folder / "a"), lease_n=1)
    return Job(kind=kind, tracked=tracked, training=training)


def test_trackers_end_with_a_killed_driver(tmp_path: Path) -> None:
    """With every process of their libraries, and at once: the next attempt is about to begin."""
    code = (
        "import sys, time; from jobs.training.tracker_processes import TrackerProcess;"
        "from jobs.training.tracking import Job;"
        "TrackerProcess(Job.model_validate_json(sys.argv[1])); time.sleep(600)"
    )
    argv = [sys.executable, "-c", code, job_of(tmp_path, "wandb").model_dump_json()]
    with subprocess.Popen(argv) as driver:
        deadline = time.monotonic() + 120
        while not offline_wandb.folders(tmp_path / "curves"):
            assert time.monotonic() < deadline, "the tracker never began"
            time.sleep(0.05)
        processes = psutil.Process(driver.pid).children(recursive=True)
        assert processes
        driver.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive
