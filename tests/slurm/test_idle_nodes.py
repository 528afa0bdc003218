"""Which nodes count as there for a training that could have more."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.backends.base import Job, Shape
from orchestrator.backends.slurm import SlurmBackend
from orchestrator.control.slurm.more_nodes import has_room, idle_nodes
from tests.slurm.cluster import SlurmCluster
from tests.slurm.rig import wait_for

ONE = Shape(num_nodes=3, min_nodes=1, cpus=1, mem_gb=1.0, walltime_min=60)


@pytest.fixture
def job(slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job that has one node and could have three."""
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
    argv = ("sleep", "600")
    job = Job(name="run/train", argv=argv, log=tmp_path / "log", env={}, shape=ONE)
    words = ("--partition=low", "--nodelist=node1", "--cpus-per-task=1", "--mem=1G", "--time=60")
    own = slurm.run("sbatch", "--parsable", *words, "--output=/dev/null", "--wrap=sleep 600")
    # As a sentinel does: `sbatch --test-only` says that others start later because of it.
    after = ("--dependency=afternotok:" + own.strip(), "--output=/dev/null", "--wrap=true")
    slurm.run("sbatch", "--time=60", "--partition=low", *after)
    wait_for(lambda: "node1" in [row.nodes for row in slurm.queue()], "its node")
    return job


def has(job: Job, number: int) -> bool:
    return has_room(SlurmBackend(), job, "low", number)


def test_only_idle_nodes_that_nobody_waits_for_are_room(slurm: SlurmCluster, job: Job) -> None:
    assert (has(job, 3), has(job, 4)) == (True, False), "its own has cores left, and is not idle"
    slurm.set_node("node4", "drain")
    assert idle_nodes("low")[0] == 2
    assert (has(job, 2), has(job, 3)) == (True, False)
    held = slurm.occupy("node2", seconds=600)
    wait_for(lambda: idle_nodes("low")[0] == 1, "a node that is taken")
    assert (has(job, 1), has(job, 2)) == (True, False), "it is free in five minutes"
    words = ("--partition=low", "--nodes=2", "--exclusive", "--time=60", "--output=/dev/null")
    slurm.run("sbatch", *words, "--wrap=true")
    wait_for(lambda: SlurmBackend().is_waited_for("low"), "somebody who waits")
    assert not has(job, 1)
    slurm.run("scancel", held)
