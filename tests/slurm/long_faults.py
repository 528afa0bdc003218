"""More of what a cluster does to jobs, for `make drill`: each takes minutes.

Not collected by `make test`; run by its path: ``pytest tests/slurm/long_faults.py``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.slurm_reasons import LAUNCH_FAILED
from orchestrator.control.slurm.more_nodes import ASKED
from orchestrator.ledger.attempt import AttemptFolder
from tests.slurm.cluster import SlurmCluster
from tests.slurm.rig import RESOURCES, SETTINGS, SlurmSmoke, saved_step, wait_for
from tests.smoke import Smoke, largest_difference_of_losses


@pytest.mark.usefixtures("same_bytes")
def test_a_warning_to_one_node_alone_is_heard_by_all(
    slurm: SlurmCluster, smoke: SlurmSmoke
) -> None:
    """Submitit's handler would do nothing on any node but the first, and nothing on SIGTERM."""
    name = smoke.submit()
    smoke.await_step(name, 60)
    (node,) = {row.nodes for row in slurm.queue() if row.id == smoke.job(name, "train")}
    agents = [p for p in slurm.job_processes() if "jobs.training.node_agent" in p.cmdline()]
    assert len(agents) == 1, node
    agents[0].terminate()
    wait_for(lambda: smoke.causes(name, "train") != ["(open)"], "the end of the attempt")
    assert smoke.await_end(name) == "succeeded", smoke.jobs_output(name)
    assert smoke.causes(name, "train") == ["preempted", ""]


def test_a_preempted_training_has_all_of_its_notice_to_save(
    slurm: SlurmCluster, smoke: SlurmSmoke
) -> None:
    """The checkpoint takes longer than a driver needs to end."""
    slow = {**slurm.env, "ORCHESTRATOR_FAULT": '{"kind": "slow_store", "mb_per_s": 0.06}'}
    smoke = SlurmSmoke(smoke.folder, slow)
    name = smoke.submit(**{"train.checkpoint.every_steps": "100000"})
    lost_at = smoke.preempt_training(slurm, name)
    assert smoke.await_end(name) == "succeeded", smoke.jobs_output(name)
    assert smoke.causes(name, "train") == ["preempted", ""]
    assert saved_step(smoke.attempts(name, "train")[1]) == lost_at > 0


@pytest.mark.usefixtures("same_bytes")
def test_a_rank_that_dies_is_replaced_within_the_allocation(
    slurm: SlurmCluster, smoke: SlurmSmoke
) -> None:
    name = smoke.submit()
    smoke.await_step(name, 60)
    beats = smoke.attempts(name, "train")[0].storage
    rank = beats.read_json("beats/rank-00003.json")["process"]["pid"]
    victim = next(p for p in slurm.job_processes() if p.pid == rank)
    victim.kill()
    job = smoke.job(name, "train")
    assert smoke.await_end(name) == "succeeded", smoke.jobs_output(name)
    assert smoke.causes(name, "train") == ["worker_lost", ""]
    first, second = smoke.attempts(name, "train")
    blamed = [e for e in first.events() if e["kind"] == "rank_failed"]
    assert [(e["rank"], e["code"]) for e in blamed] == [(3, -9)]
    assert first.end["node"] == blamed[0]["node"]
    assert first.started["restart_id"] == second.started["restart_id"] == f"{job}-0"


@pytest.mark.usefixtures("same_bytes")
def test_a_node_that_is_set_down(slurm: SlurmCluster, smoke: SlurmSmoke) -> None:
    name = smoke.submit()
    smoke.await_step(name, 60)
    slurm.set_node(smoke.attempts(name, "train")[0].started["node"], "down")
    assert smoke.await_end(name) == "succeeded", smoke.jobs_output(name)
    starts = [a.started["restart_id"] for a in smoke.attempts(name, "train")]
    assert starts == [f"{smoke.job(name, 'train')}-{n}" for n in range(2)]
    assert smoke.causes(name, "train") in (["node_lost", ""], ["preempted", ""])


def test_the_walltime_ends_twice_in_a_row(
    slurm: SlurmCluster, smoke: SlurmSmoke, material: Path
) -> None:
    """A job of one minute, warned half a minute before: submitit would call any signal its end."""
    smoke.change(resources={"train": {**RESOURCES["train"], "walltime_min": 1}})
    name = smoke.submit(**{"train.steps": "800"})
    assert smoke.await_end(name) == "succeeded", smoke.jobs_output(name)
    causes = smoke.causes(name, "train")
    assert causes.count("walltime") >= 2
    assert set(causes[:-1]) == {"walltime"}
    whole = SlurmSmoke.on(slurm, smoke.folder.parent / "whole", material)
    whole.take_artifacts(smoke, "train", "perplexity", "continuations")
    again = whole.submit(**{"train.steps": "800"})
    assert whole.await_end(again) == "succeeded", whole.jobs_output(again)
    assert whole.causes(again, "train") == [""]
    assert whole.fingerprint() == smoke.fingerprint()


@pytest.mark.usefixtures("same_bytes")
def test_a_training_node_loses_its_power(slurm: SlurmCluster, smoke: SlurmSmoke) -> None:
    name = smoke.submit()
    smoke.await_step(name, 60)
    job = smoke.job(name, "train")
    nodes = {row.nodes for row in slurm.queue() if row.id == job}
    slurm.kill_node(smoke.attempts(name, "train")[0].started["node"])
    wait_for(lambda: len(smoke.attempts(name, "train")) > 1, f"a life on others than {nodes}")
    assert smoke.await_end(name) == "succeeded", smoke.jobs_output(name)
    assert smoke.causes(name, "train") == ["node_lost", ""]


@pytest.mark.usefixtures("same_bytes")
def test_the_head_of_the_elastic_cluster_is_lost(slurm: SlurmCluster, smoke: SlurmSmoke) -> None:
    smoke.forget_artifacts("tokenize", "pack")
    name = smoke.submit()
    (attempt,) = wait_for(lambda: smoke.attempts(name, "tokenize"), "the head")
    slurm.kill_node(attempt.started["node"])
    assert smoke.await_end(name) == "succeeded", smoke.jobs_output(name)
    assert smoke.causes(name, "tokenize")[-1] == ""
    assert len({a.started["node"] for a in smoke.attempts(name, "tokenize")}) == 2


@pytest.mark.usefixtures("same_bytes")
def test_workers_that_are_gone_for_good_are_replaced(
    slurm: SlurmCluster, smoke: SlurmSmoke
) -> None:
    """Somebody cancels the whole array; the head looks every two minutes."""
    smoke.forget_artifacts("tokenize", "pack")
    name = smoke.submit()
    first = smoke.job(name, "tokenize", "workers")
    wait_for(lambda: smoke.attempts(name, "tokenize"), "the driver")
    slurm.run("scancel", first)
    assert smoke.await_end(name) == "succeeded", smoke.jobs_output(name)
    assert smoke.job(name, "tokenize", "workers") != first
    assert smoke.causes(name, "tokenize") == [""]


@pytest.mark.usefixtures("same_bytes")
def test_workers_do_not_wait_for_another_run(slurm: SlurmCluster, smoke: SlurmSmoke) -> None:
    """They give their nodes back, and are asked for anew once there is something to do."""
    smoke.forget_artifacts("tokenize", "pack")
    elsewhere = {"workers": {"cpus": slurm.cpus, "extra": {"begin": "now+1hour"}}}
    own = {"workers": {"cpus": slurm.cpus}, "idle_timeout_s": 20, "partition": "low"}
    smoke.change(slurm={**own, **elsewhere})
    other = smoke.submit("--name", "other")
    wait_for(lambda: smoke.attempts(other, "tokenize"), "the other run's driver")
    smoke.change(slurm=own)
    name = smoke.submit()
    workers = smoke.job(name, "tokenize", "workers")

    def in_queue() -> bool:
        return any(row.id.startswith(workers) for row in slurm.queue())

    wait_for(lambda: not in_queue(), "nodes given back")
    assert smoke.causes(name, "tokenize") in ([], ["lease_held"]), "both may see nobody at work"
    smoke.orchestrator("cancel", other)
    assert smoke.await_end(name) == "succeeded", smoke.jobs_output(name)
    assert smoke.job(name, "tokenize", "workers") != workers


def test_a_training_holds_no_nodes_while_another_run_does_it(
    slurm: SlurmCluster, smoke: SlurmSmoke
) -> None:
    """Its job comes back when that of the other run has ended, and goes on with what is there."""
    longer = {"train.steps": "2000"}
    first = smoke.submit("--name", "first", **longer)
    smoke.await_step(first, 60)
    second = smoke.submit("--name", "second", **longer)
    theirs, ours = smoke.job(first, "train"), smoke.job(second, "train")

    def waits() -> bool:
        said = slurm.run("squeue", f"--jobs={ours}", "--noheader", "--format=%T %E")
        return said.split() == ["PENDING", f"afterany:{theirs}(unfulfilled)"]

    wait_for(waits, "the second job to give its nodes back")
    smoke.orchestrator("cancel", first)
    assert smoke.await_end(second) == "succeeded", smoke.jobs_output(second)
    assert smoke.job(second, "train") == ours, "requeued, not submitted anew"
    assert set(smoke.causes(second, "train")) <= {"lease_held", ""}
    assert json.loads(smoke.orchestrator("verify", second, "--json").stdout)["ok"]


@pytest.mark.usefixtures("same_bytes")
def test_what_no_node_could_start_is_held_and_resumed(
    slurm: SlurmCluster, smoke: SlurmSmoke
) -> None:
    for node in slurm.nodes:
        slurm.spoil_node(node)
    name = smoke.submit()
    first = smoke.job(name, "train")

    def said() -> str:
        stages = smoke.status(name)["stages"]
        return next(stage["job"] for stage in stages if stage["name"] == "train")

    wait_for(lambda: LAUNCH_FAILED in said(), "a held job", every_s=2.0)
    assert smoke.status(name)["state"] == "queued"
    for node in slurm.nodes:
        slurm.mend_node(node)
    smoke.orchestrator("resume", name)
    assert smoke.job(name, "train") != first
    assert smoke.await_end(name) == "succeeded", smoke.jobs_output(name)


@pytest.mark.usefixtures("same_bytes")
def test_a_node_that_fails_alone_is_excluded(slurm: SlurmCluster, smoke: SlurmSmoke) -> None:
    """Its rank dies twice at the same place; the next job of the training keeps off it."""
    name = smoke.submit(**{"train.checkpoint.every_steps": "100000"})
    job = smoke.job(name, "train")
    for number in (1, 2):
        wait_for(lambda n=number: len(smoke.attempts(name, "train")) == n, f"attempt {number}")
        smoke.await_step(name, 20)
        storage = smoke.attempts(name, "train")[-1].storage
        rank = storage.read_json("beats/rank-00002.json")["process"]["pid"]
        next(p for p in slurm.job_processes() if p.pid == rank).kill()
    wait_for(lambda: smoke.job(name, "train") != job, "another job")
    assert smoke.await_end(name) == "succeeded", smoke.jobs_output(name)
    assert smoke.causes(name, "train") == ["worker_lost", "worker_lost", ""]
    _, second, _ = smoke.attempts(name, "train")
    assert second.end["action"] == "elsewhere"
    script = smoke.run(name).storage.local_root / "submissions" / "0002"
    (text,) = [p.read_text() for p in script.glob("train*/script.sh")]
    assert f"--exclude={second.end['node']}" in text


_APPTAINER = """#!/bin/sh
# Runs the command after the image's name, and like most images has none of Slurm's.
while [ "$1" != /an/image.sif ]; do shift; done
shift
PATH=/nonexistent exec "$@"
"""


@pytest.mark.usefixtures("same_bytes")
def test_from_a_container_the_script_asks_to_come_back(
    slurm: SlurmCluster, smoke: SlurmSmoke, tmp_path: Path
) -> None:
    apptainer = tmp_path / "bin" / "apptainer"
    apptainer.parent.mkdir()
    apptainer.write_text(_APPTAINER)
    apptainer.chmod(0o755)
    env = {**slurm.env, "PATH": f"{apptainer.parent}:{slurm.env['PATH']}"}
    venv = Path(sys.executable).parent.parent
    smoke.change(environment={"container": "/an/image.sif", "venv": str(venv)})
    smoke = SlurmSmoke(smoke.folder, env)
    name = smoke.submit()
    smoke.await_step(name, 60)
    job = smoke.job(name, "train")
    slurm.occupy(*slurm.nodes, seconds=3)
    assert smoke.await_end(name) == "succeeded", smoke.jobs_output(name)
    assert smoke.causes(name, "train") == ["preempted", ""]
    assert smoke.job(name, "train") == job, "requeued, not resumed by the sentinel"


def test_a_run_moves_to_another_store_in_the_middle_of_its_training(
    slurm: SlurmCluster,
    smoke: SlurmSmoke,
    undisturbed: tuple[SlurmSmoke, str],
    material: Path,
    tmp_path: Path,
) -> None:
    name = smoke.submit()
    smoke.await_step(name, 60)
    there = SlurmSmoke.on(slurm, tmp_path / "there", material)
    moved = there.orchestrator("resume", smoke.run(name).storage.url)
    assert "is at work; it is asked to save and stop" in moved.stderr
    assert there.await_end(name) == "succeeded", there.jobs_output(name)
    first, second = there.attempts(name, "train")
    assert first.end["state"] == "cancelled"
    assert saved_step(second) >= 60
    assert there.fingerprint() == undisturbed[0].fingerprint()
    assert json.loads(there.orchestrator("verify", name, "--json").stdout)["ok"]
    assert smoke.status(name)["moved_to"] == there.run(name).storage.url
    assert [row for row in slurm.queue() if row.id == smoke.job(name, "train")] == []


def test_chaos_strikes_runs_on_slurm_too(smoke: SlurmSmoke) -> None:
    name = smoke.submit(**{"train.steps": "4000"})
    smoke.await_step(name, 60)
    for fault in ("rank", "node"):
        said = smoke.orchestrator("chaos", name, "--kill", fault).stdout
        assert "recovered" in said
    assert smoke.causes(name, "train")[0] == "worker_lost"
    smoke.orchestrator("cancel", name)
    assert smoke.status(name)["state"] == "cancelled"


OF_TWELVE = {
    "train.steps": "1000",
    "train.global_batch_tokens": str(12 * 32),
    "train.validate_every_steps": "2",
    "train.checkpoint.every_steps": "20",
}
"""What 1, 2 and 3 ranks can share, with a while between the steps."""


@pytest.fixture(scope="module")
def fixed(
    undisturbed: tuple[SlurmSmoke, str], material: Path, tmp_path_factory: pytest.TempPathFactory
) -> Smoke:
    """The same training by 3 ranks throughout."""
    folder = tmp_path_factory.mktemp("fixed") / "run"
    smoke = Smoke.create(folder, material, cpus=4, resources={"train": {"ranks_per_node": 3}})
    smoke.take_artifacts(undisturbed[0], "train", "perplexity", "continuations")
    settings = [w for k, v in {**SETTINGS, **OF_TWELVE}.items() for w in ("--set", f"{k}={v}")]
    assert smoke.finish(smoke.submit(*settings, "--until", "train")) == 0
    return smoke


def train_with_a_range(smoke: SlurmSmoke, **retry: float) -> str:
    """Submit a training of 1 to 3 nodes; the run's name."""
    elastic = {"mem_gb": 2, "nodes": {"min": 1, "max": 3}}
    retry = {"heartbeat_timeout_s": 6, "notice_s": 30, **retry}
    smoke.change(resources={**RESOURCES, "train": elastic}, retry=retry)
    return smoke.submit("--until", "train", **OF_TWELVE)


def require_equal(smoke: SlurmSmoke, name: str, fixed: Smoke, sizes: list[int]) -> None:
    """Assert that attempts of these sizes have trained as ranks of one number do."""
    assert smoke.await_end(name) == "succeeded", smoke.jobs_output(name)
    attempts = smoke.attempts(name, "train")
    placed = [e["nodes"] for a in attempts for e in a.events() if e["kind"] == "placed"]
    assert placed == sizes
    assert [a.started["cpus"] for a in attempts] == placed, "what is paid for"
    steps = [[step["step"] for step in a.steps()] for a in attempts]
    assert [a[0] for a in steps[1:]] == [a[-1] + 1 for a in steps[:-1]], "no step twice"
    worst = largest_difference_of_losses(smoke, fixed)
    assert worst < 1e-4
    print(json.dumps({"nodes": placed, "largest_difference_of_losses": worst}))


def attempt_that_trains(smoke: SlurmSmoke, name: str, number: int) -> AttemptFolder:
    """Wait until an attempt has made some steps."""
    wait_for(lambda: len(smoke.attempts(name, "train")) >= number, f"attempt {number}")
    attempt = smoke.attempts(name, "train")[number - 1]
    wait_for(lambda: list(attempt.steps())[60:], "its steps")
    return attempt


def test_a_training_takes_the_nodes_that_there_are(
    slurm: SlurmCluster, smoke: SlurmSmoke, fixed: Smoke
) -> None:
    """3, 1 and 3 ranks of a global batch of 12: the same samples, and losses within 1e-4."""
    name = train_with_a_range(smoke)
    smoke.await_step(name, 60)
    occupied = slurm.occupy(*slurm.nodes[:3], seconds=600)
    attempt_that_trains(smoke, name, 2)
    slurm.run("scancel", occupied)
    slurm.occupy(slurm.nodes[3], seconds=3)  # and it is started anew, with all that it may have
    require_equal(smoke, name, fixed, [3, 1, 3])


def test_a_training_goes_for_more_nodes_once_they_are_idle(
    slurm: SlurmCluster, smoke: SlurmSmoke, fixed: Smoke
) -> None:
    """At first somebody else takes them meanwhile: 2, 2 and 3 ranks."""
    occupied = slurm.occupy(*slurm.nodes[2:], seconds=600)
    name = train_with_a_range(smoke, resize_wait_s=2)
    first = attempt_that_trains(smoke, name, 1)
    assert first.end is None, "no node is idle"
    slurm.run("scancel", "--full", "--signal=KILL", occupied)
    job, instance = smoke.job(name, "train"), first.storage.url.split("/")[-3]

    def asked(start: int) -> Any:
        return smoke.run(name).allocation(instance, f"{job}-{start}").find_json(ASKED)

    assert wait_for(lambda: asked(0), "its wish for more") == {"had": 2, "tries": 1}
    occupied = slurm.occupy(*slurm.nodes[2:], seconds=600)
    second = attempt_that_trains(smoke, name, 2)
    assert saved_step(second) == list(first.steps())[-1]["step"], "it left nothing undone"
    slurm.run("scancel", "--full", "--signal=KILL", occupied)
    require_equal(smoke, name, fixed, [2, 2, 3])
    assert asked(1) == {"had": 2, "tries": 2}
    assert smoke.causes(name, "train") == ["preempted", "preempted", ""]
