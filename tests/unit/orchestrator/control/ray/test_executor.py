"""A run is handed to a head: once, anew after an end in vain, and with its last words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.base import Job
from orchestrator.backends.ray_jobs import RayJobs
from orchestrator.control.ray.executor import RayExecutor
from orchestrator.errors import BackendError
from orchestrator.ledger.lease import Process
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store
from orchestrator.spec.cluster import Cluster
from tests.jobs_api import PlayedHead, playing
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t0k3n")


@pytest.fixture
def head() -> Iterator[PlayedHead]:
    with playing() as head:
        yield head


def scene(folder: Path, head: PlayedHead, **settings: object) -> tuple[RunFolder, Store]:
    store = Store.open(str(folder / "store"))
    run = RunFolder(store.run_storage("small"))
    where = cluster(store.storage.url, backend="ray", ray={"address": head.url}, **settings)
    run.create(plan_of(recipe()), recipe(), where, {}, {})
    return run, store


def test_a_run_is_a_job_of_the_head(tmp_path: Path, head: PlayedHead) -> None:
    run, store = scene(tmp_path, head)

    def announce(_: dict[str, Any]) -> None:
        run.begin_supervisor(process=Process.current().__dict__)

    head.on_submit = announce
    assert RayExecutor().start(run, store).outcome == "started"
    (asked,) = head.jobs.values()
    url = store.storage.url
    assert asked["submission_id"] == "small-s0001"
    assert asked["entrypoint"] == (
        f"python -m orchestrator.control.ray.supervisor --store {url} --run small"
    )
    assert RayExecutor().start(run, store).outcome == "running"
    assert len(head.jobs) == 1


def test_the_environment_is_that_of_the_cluster_file(tmp_path: Path, head: PlayedHead) -> None:
    run, store = scene(tmp_path, head, environment={"venv": "/opt/v", "setup": ["module load x"]})
    argv = RayExecutor().supervisor_job(run, store).argv
    assert argv[:2] == ("bash", "-c")
    assert argv[4:6] == ("/opt/v/bin/python", "-m")


def test_what_ends_in_vain_is_said_with_its_last_words_and_tried_anew(
    tmp_path: Path, head: PlayedHead
) -> None:
    run, store = scene(tmp_path, head)
    head.on_submit = lambda job: job.update(status="FAILED", logs="Traceback\nKeyError: 'x'\n\n")
    for tag in ("small-s0001", "small-s0001.2"):
        says = rf"small: no supervisor started \(KeyError: 'x'\); see `ray job logs {tag}`"
        with pytest.raises(BackendError, match=says):
            RayExecutor().start(run, store)
    assert list(head.jobs) == ["small-s0001", "small-s0001.2"]


def test_doctor_says_what_there_is(tmp_path: Path, head: PlayedHead) -> None:
    where = cluster(str(tmp_path), backend="ray", ray={"address": head.url})
    checks = {check.name: check for check in RayExecutor().checks(where)}
    assert checks["ray"].detail == f"{head.url} answers, Ray 2.60.0"
    assert all(check.passed for check in checks.values())
    with playing(token="") as other:
        where = cluster(str(tmp_path), backend="ray", ray={"address": other.url})
        checks = {check.name: check for check in RayExecutor().checks(where)}
        assert not checks["ray token"].passed
    (gone,) = RayExecutor().checks(where)
    assert (gone.passed, "does not answer" in gone.detail) == (False, True)


@pytest.mark.parametrize(
    ("ray", "path", "says"),
    [
        ({"address": "http://head:8265"}, "", []),
        ({"tunnel": ["ssh", "-L", "{port}:127.0.0.1:8265", "head"]}, "", []),
        ({}, "", ["cluster: ray.address: names no cluster, and RAY_ADDRESS is not set"]),
        ({"address": "http://head:8265"}, "/absent/token", ["RAY_AUTH_TOKEN_PATH: /absent/token"]),
    ],
)
def test_a_cluster_that_cannot_be_found_is_told_before_it_is_asked(
    ray: dict[str, Any], path: str, says: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if path:
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", path)
    request = Requested(cluster("/store", backend="ray", ray=ray))
    found = list(RayExecutor().problems(request))
    assert [line.startswith(words) for line, words in zip(found, says, strict=True)] == [
        True
    ] * len(says)


class Requested:
    """The part of a request that is asked about."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster


def test_a_job_of_no_live_run_is_found(tmp_path: Path, head: PlayedHead) -> None:
    run, _ = scene(tmp_path, head)
    where = run.cluster()
    jobs = RayJobs(head.url, "t0k3n")
    for tag in ("small-s0001", "gone-s0002", "another-tool"):
        name = tag.rpartition("-")[0]
        jobs.submit(Job(name=name, argv=("sleep", "9"), log=Path("l"), tag=tag))
    (found,) = (c for c in RayExecutor().checks(where) if c.name == "ray jobs")
    assert found.is_optional
    assert found.detail.endswith(": `ray job stop small-s0001`, `ray job stop gone-s0002`")
    run.begin_supervisor(process=Process.current().__dict__)
    (found,) = (c for c in RayExecutor().checks(where) if c.name == "ray jobs")
    assert found.detail.endswith("at work: `ray job stop gone-s0002`")


def test_nodes_of_no_live_run_are_found(tmp_path: Path, head: PlayedHead) -> None:
    types = {"gpu": {"mem_gb": 1, "gpus": 8, "max_nodes": 2}}
    ray = {"address": head.url, "node_types": types}
    where = cluster(str(tmp_path), backend="ray", ray=ray)
    there = {"id": "ab", "type": "gpu", "gpus": 8.0, "idle_s": 660.0}

    def answer(job: dict[str, Any]) -> None:
        job.update(status="SUCCEEDED", logs=json.dumps({"counts": [], "there": [there]}))

    def told() -> list[str]:
        return [c.detail for c in RayExecutor().checks(where) if c.name == "ray nodes"]

    head.on_submit = answer
    assert told() == [
        "no run is at work, and a gpu with 8 GPUs has idled for 11 min; end them, or submit a run, "
        "which gives them back"
    ]
    there["idle_s"] = 300.0
    assert told() == [], "its autoscaler may end it yet"
    there["idle_s"] = 660.0
    head.on_submit = bool
    RayJobs(head.url, "t0k3n").submit(
        Job(name="small", argv=("sleep", "9"), log=Path("l"), tag="small-s0001")
    )
    head.on_submit = answer
    assert told() == [], "the run gives it back"
