"""The exact command of a stage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.control.job import cpus_of, run_parser, stage_job, with_setup
from orchestrator.ledger.attempt import LOCAL_FOLDER
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
    attempt, log = run.begin_attempt(train.id), tmp_path / "driver.log"
    env = {"RAY_ADDRESS": "127.0.0.1:1"}
    job = stage_job(run, store, train, attempt, log=log, env=env)
    words = (
        *("-u", "-m", "jobs.train", "--store", str(tmp_path), "--run", "small"),
        *("--instance", train.id, "--attempt", "1"),
    )
    assert (job.name, job.log, job.detached) == (train.id, log, False)
    assert job.argv == (sys.executable, *words)
    assert job.env["PYTHONPATH"] == str(tmp_path / "runs/small/code")
    assert job.env["RAY_ADDRESS"] == "127.0.0.1:1"
    assert job.env[LOCAL_FOLDER] == str(tmp_path), "where its ranks' logs are collected"
    where = cluster(str(tmp_path), environment={"venv": "/opt/venv", "setup": ["true"]})
    set_up = stage_job(run, store, train, attempt, log=log, env={}, cluster=where)
    assert set_up.argv[:2] == ("bash", "-c")
    assert set_up.argv[-len(words) - 1 :] == ("/opt/venv/bin/python", *words)


def test_set_up_lines_run_first_and_words_stay_words() -> None:
    where = cluster("s", environment={"setup": ["export GREETING=hello", "cd /"]})
    script = "import os, sys; print(os.environ['GREETING'], os.getcwd(), sys.argv[1:])"
    argv = with_setup(where.environment, (sys.executable, "-c", script, "two words", "$HOME"))
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "hello / ['two words', '$HOME']\n"


@pytest.mark.parametrize(
    "line",
    ["false", "module_that_is_none load cuda/12", ". /nowhere/profile", "cd /nowhere || exit 3"],
)
def test_a_set_up_line_that_fails_stops_the_job_and_is_named(line: str) -> None:
    where = cluster("s", environment={"setup": [f"{line}", "echo never"]})
    argv = with_setup(where.environment, ("echo", "never"))
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode > 0, done.stdout) == (True, "")
    assert f"error: environment.setup: failed: {line.rpartition(' || ')[2]}\n" in done.stderr
    assert with_setup(Environment(), ("true",)) == ("true",)


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


SCRIPT = """
import logging
from orchestrator.control.job import log_to_stderr
log_to_stderr()
logging.getLogger("orchestrator.control.supervise").info("%s: attempt %d started", "pack", 1)
logging.getLogger("__main__").info("mine")
logging.getLogger("botocore").info("not ours")
logging.getLogger("botocore").warning("but this")
"""


def test_our_lines_have_a_time_and_libraries_only_warn() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    times, texts = zip(*(line.split(" ", 1) for line in done.stderr.splitlines()), strict=True)
    assert texts == ("pack: attempt 1 started", "mine", "but this")
    assert all(len(time.split(":")) == 3 for time in times)
    assert done.stdout == ""


def test_a_run_must_be_named() -> None:
    options = run_parser("x").parse_args(["--store", "s3://b", "--run", "r"])
    assert (options.store, options.run) == ("s3://b", "r")
    with pytest.raises(SystemExit):
        run_parser("x").parse_args(["--store", "s3://b"])
