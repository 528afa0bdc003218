"""Whose work a job would wait for, and when it comes back."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from orchestrator.backends.slurm_allocation import Allocation
from orchestrator.control.slurm.other_runs import LATER, OtherRuns
from orchestrator.ledger import lease as leases
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage
from orchestrator.plan.planner import Instance
from tests.unit.orchestrator.control.slurm.scene import Scene
from tests.unit.orchestrator.recipes import cluster

HERE = Allocation(
    job_id="3", restarts=0, node_index=0, node="n1", leader_address="127.0.0.1", cluster="blue"
)


@pytest.fixture
def train(scene: Scene) -> Instance:
    patience = {"heartbeat_timeout_s": 0.2}
    scene.run.move(cluster(scene.store.storage.url, backend="slurm", retry=patience))
    return scene.run.plan().instance(scene.id("train"))


def storage_of(scene: Scene, instance: Instance) -> Storage:
    return scene.store.artifact(instance.stage, instance.key).storage


def take(scene: Scene, instance: Instance, run: str) -> leases.HeldLease:
    holder = f"{run}/{instance.id}/0001"
    return leases.acquire(storage_of(scene, instance), holder=holder, timeout_s=60)


def test_only_a_live_lease_of_another_run_counts(scene: Scene, train: Instance) -> None:
    others = OtherRuns(scene.store, scene.run, (train,))
    assert others.holder() is None
    own = take(scene, train, scene.run.name)
    assert others.holder() is None, "an earlier start of this job"
    own.release()
    lease = take(scene, train, "other")
    assert not others.will_take_long(), "it may end at once"
    time.sleep(0.25)
    assert others.will_take_long()
    lease.release()
    assert not others.will_take_long()
    assert not others.are_waited_for


@pytest.mark.parametrize(
    ("where", "row", "terms"),
    [
        ("blue", "77|RUNNING|n2|None|x", "Dependency=afterany:77"),
        ("blue", "77|PENDING||Priority|x", "Dependency=afterany:77"),
        ("blue", "77|COMPLETED|n2|None|x", LATER),
        ("blue", "", LATER),
        ("green", "77|RUNNING|n2|None|x", LATER),
    ],
)
def test_a_job_comes_back_after_the_one_that_does_its_work(
    scene: Scene, train: Instance, where: str, row: str, terms: str
) -> None:
    """Where that is a job of this cluster, and still in its queue."""
    other = RunFolder(scene.store.run_storage("other"))
    other.begin_attempt(train.id, job="77", cluster=where)
    take(scene, train, "other")
    scene.answers.say("squeue", row and f"{row}\n")
    assert OtherRuns(scene.store, scene.run, (train,)).terms(HERE) == terms


@pytest.mark.parametrize("holder", ["other", "other/train", "other/train/x", "/", "a/b/c/d"])
def test_a_holder_of_which_nothing_is_known_is_looked_at_again_later(
    scene: Scene, train: Instance, holder: str
) -> None:
    leases.acquire(storage_of(scene, train), holder=holder, timeout_s=60)
    others = OtherRuns(scene.store, scene.run, (train,))
    assert others.terms(replace(HERE, cluster="")) == LATER
