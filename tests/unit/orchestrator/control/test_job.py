"""The exact command of a stage and of a supervisor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.control.job import cpus_of, stage_job, supervisor_job, with_setup
from orchestrator.errors import OrchestratorError
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store
from orchestrator.spec.cluster import Environment, Resources
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


@pytest.fixture
def run(store: Store) -> RunFolder:
    run = RunFolder(store.run_storage("small"))
    run.create(plan_of(recipe()), recipe(), cluster(store.storage.url), {}, {})
    return run


def test_a_stage(run: RunFolder, store: Store, tmp_path: Path) -> None:
    train = next(i for i in run.plan().instances if i.stage == "train")
    where = cluster(str(tmp_path))
    attempt = run.begin_attempt(train.id)
    job = stage_job(run, store, where, train, attempt, {"RAY_ADDRESS": "127.0.0.1:1"})
    assert job.argv == (
        *(sys.executable, "-u", "-m", "jobs.train", "--store", str(tmp_path), "--run", "small"),
        *("--instance", train.id, "--attempt", "1"),
    )
    assert job.name == train.id
    assert job.log == tmp_path / f"runs/small/stages/{train.id}/attempts/0001/driver.log"
    assert job.env["PYTHONPATH"] == str(tmp_path / "runs/small/code")
    assert job.env["RAY_ADDRESS"] == "127.0.0.1:1"
    assert not job.detached


def test_a_supervisor_outlives_whoever_submits_it(
    run: RunFolder, store: Store, tmp_path: Path
) -> None:
    job = supervisor_job(run, store, cluster(str(tmp_path), environment={"venv": "/opt/venv"}))
    assert job.argv == (
        *("/opt/venv/bin/python", "-m", "orchestrator.control.supervise"),
        *("--store", str(tmp_path), "--run", "small"),
    )
    assert job.detached
    assert job.log == tmp_path / "runs/small/supervisor.log"


def test_set_up_lines_run_first_and_words_stay_words() -> None:
    where = cluster("s", environment={"setup": ["export GREETING=hello", "cd /"]})
    script = "import os, sys; print(os.environ['GREETING'], os.getcwd(), sys.argv[1:])"
    argv = with_setup(where, (sys.executable, "-c", script, "two words", "$HOME"))
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "hello / ['two words', '$HOME']\n"


def test_a_set_up_line_that_fails_stops_the_job() -> None:
    where = cluster("s", environment={"setup": ["false"]})
    assert subprocess.run(with_setup(where, ("true",)), check=False).returncode == 1
    assert with_setup(cluster("s"), ("true",)) == ("true",)
    assert Environment().setup == ()


@pytest.mark.parametrize(
    ("stage", "resources", "cpus"),
    [
        ("pack", Resources(), 1),
        ("pack", Resources(cpus_per_worker=3, max_workers=5), 3),
        ("tokenize", Resources(cpus_per_worker=3, max_workers=5), 15),
        ("train", Resources(nodes=2, ranks_per_node=4), 8),
        ("train", Resources(gpus_per_node=8, cpus_per_worker=2), 16),
    ],
)
def test_cpus_of_a_stage(stage: str, resources: Resources, cpus: int) -> None:
    assert cpus_of(stage, resources) == cpus


def test_code_needs_a_path() -> None:
    store = Store.open("memory://job-test")
    run = RunFolder(store.run_storage("small"))
    with pytest.raises(OrchestratorError) as raised:
        supervisor_job(run, store, cluster("memory://job-test"))
    assert str(raised.value) == (
        "memory://job-test/runs/small: jobs run their code from the store, "
        "which must be a path here"
    )
