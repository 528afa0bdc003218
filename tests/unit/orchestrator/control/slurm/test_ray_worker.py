"""When a worker gives its node back."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from orchestrator.backends.slurm_allocation import Allocation
from orchestrator.control.slurm.ray_worker import Worker, host_of
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store
from tests.unit.orchestrator.control.slurm.scene import Scene
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe
from tests.unit.orchestrator.scheduler import Answers

HERE = Allocation(job_id="4_0", restarts=0, node_index=0, node="n1", leader_address="127.0.0.1")


@pytest.mark.parametrize(
    ("stage", "idle_timeout_s", "why"),
    [
        ("tokenize", 3600.0, "the stage cannot have begun"),  # the head's job was cancelled
        ("codebook", 0.01, "no head for 0 s"),
    ],
)
def test_a_worker_without_a_head_leaves(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    stage: str,
    idle_timeout_s: float,
    why: str,
) -> None:
    caplog.set_level("INFO")
    store, plan = Store.open(str(tmp_path / "store")), plan_of(recipe())
    where = cluster(store.storage.url, backend="slurm", slurm={"idle_timeout_s": idle_timeout_s})
    run = RunFolder(store.run_storage("small"))
    run.create(plan, recipe(), where, {}, {})
    for done in plan.instances:
        if done.stage in ("corpus", "encoder"):
            artifact = store.artifact(done.stage, done.key)
            artifact.publish(inputs=done.inputs, facts={}, producer={})
    instance = next(i.id for i in plan.instances if i.stage == stage)
    assert Worker(store, run, instance, HERE, join_every_s=0.01, patience_s=0.01).work() == 0
    assert why in caplog.text


def test_a_worker_notes_since_when_it_holds_what(scene: Scene, answers: Answers) -> None:
    answers.say("scontrol", "JobState=COMPLETING\n")
    cluster = scene.run.cluster()
    worker = Worker(scene.store, scene.run, scene.id("tokenize"), HERE)
    worker.warn(signal.SIGUSR2, None)
    worker.work()
    (note,) = scene.run.worker_notes(scene.id("tokenize"))
    asked = cluster.resources_of("tokenize")
    assert note["gpus"] == asked.gpus_per_node
    assert note["cpus"] == asked.workers_per_node * asked.cpus_per_worker
    assert note["started_at"] <= note["seen_at"] <= time.time()


def test_a_warning_is_obeyed_at_once_and_told_afterwards(
    scene: Scene, answers: Answers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    answers.say("scontrol", "JobState=COMPLETING\n")
    worker = Worker(scene.store, scene.run, scene.id("tokenize"), HERE)
    worker.warn(signal.SIGUSR2, None)
    assert caplog.text == "", "a handler may have interrupted whoever holds the log"
    assert worker.work() == 1
    assert "warned by SIGUSR2" in caplog.text


@pytest.mark.parametrize(
    ("address", "host"),
    [("10.0.0.1:6379", "10.0.0.1"), ("[fd00::2]:6379", "fd00::2"), ("node1:6379", "node1")],
)
def test_the_host_of_an_address(address: str, host: str) -> None:
    assert host_of(address) == host
