"""How many nodes a training lacks, when it looks for them, and where they count as there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.slurm_allocation import Allocation
from orchestrator.control.slurm.more_nodes import ASKED, MoreNodes, sizes_of, tries_in_vain
from orchestrator.ledger.storage import Storage, to_json
from tests.unit.orchestrator.control.slurm.scene import Scene
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe

OF_TWELVE = {"train.global_batch_tokens": 12 * 128, "train.context_length": 128}
HERE = Allocation(job_id="3", restarts=2, node_index=0, node="n1", leader_address="127.0.0.1")
SITE = "idle|2|node[2-3]\nmixed|1|node1\ncompleting|1|node4\nplanned|1|node5\n"


@pytest.mark.parametrize(
    ("nodes", "sizes"),
    [({"min": 1, "max": 6}, (6, 4, 3, 2, 1)), ({"min": 2, "max": 5}, (4, 3, 2)), (4, ())],
)
def test_only_numbers_that_divide_the_batch_are_wanted(nodes: Any, sizes: tuple[int, ...]) -> None:
    of = recipe(**OF_TWELVE)
    where = cluster("/s", backend="slurm", resources={"train": {"nodes": nodes}})
    train = next(i for i in plan_of(of).instances if i.stage == "train")
    assert sizes_of(where, of, train) == sizes


def test_other_stages_have_no_choice() -> None:
    where = cluster("/s", backend="slurm", resources={"tokenize": {"nodes": {"min": 1, "max": 6}}})
    tokenize = next(i for i in plan_of(recipe()).instances if i.stage == "tokenize")
    assert sizes_of(where, recipe(), tokenize) == ()


class Training:
    """One that has 2 of 4 or 6 nodes, and looks for more as its clock goes."""

    def __init__(self, folder: Path, tries: int = 0) -> None:
        self.now, self.step, self.room = 0.0, 40.0, 0
        self.asked: list[tuple[float, int]] = []
        self.note = Storage(str(folder))
        self.more = MoreNodes(
            held=2,
            sizes=(6, 4, 2, 1),
            tries=tries,
            wait_s=300.0,
            has_room=self.has_room,
            saved_step=lambda: self.step,
            note=self.note,
            clock=lambda: self.now,
        )

    def has_room(self, number: int) -> bool:
        self.asked.append((self.now, number))
        return number <= self.room

    def looks(self, at: float, step: float) -> bool:
        self.now, self.step = at, step
        return self.more.are_there()


def test_it_looks_right_after_a_checkpoint_and_then_waits_again(tmp_path: Path) -> None:
    training = Training(tmp_path)
    looks = [(299.0, 40), (301.0, 80), (303.5, 80), (306.0, 120), (319.0, 160), (612.0, 400)]
    assert not any(training.looks(at, step) for at, step in looks)
    assert training.asked == [(306.0, 4), (306.0, 2)], "the largest first"
    training.room = 3
    assert not training.looks(614.0, 400), "what was saved long ago"
    assert training.looks(620.0, 440)
    assert training.note.read_json(ASKED) == {"had": 2, "tries": 1}


def test_each_try_in_vain_doubles_the_wait(tmp_path: Path) -> None:
    training = Training(tmp_path, tries=2)
    training.room = 4
    assert not any(training.looks(at, at) for at in (301.0, 601.0, 1199.0))
    assert not training.looks(1201.0, 1201)
    assert training.looks(1207.0, 1207)
    assert training.note.read_json(ASKED) == {"had": 2, "tries": 3}


def test_who_has_all_that_it_may_have_asks_nobody(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.more.sizes = (2, 1)
    assert not any(training.looks(at, at) for at in (301.0, 307.0))
    assert training.asked == []


@pytest.mark.parametrize(("held", "tries"), [(1, 2), (2, 2), (3, 0)])
def test_tries_are_counted_until_the_job_has_grown(scene: Scene, held: int, tries: int) -> None:
    train, here = scene.id("train"), replace(HERE, num_nodes=held)
    assert tries_in_vain(scene.run, train, here) == 0
    scene.run.allocation(train, "3-0").replace(ASKED, to_json({"had": 2, "tries": 2}))
    assert tries_in_vain(scene.run, train, here) == tries, "3-1 was preempted"
    assert tries_in_vain(scene.run, train, replace(here, job_id="4")) == 0


@pytest.fixture
def site(scene: Scene) -> Scene:
    """A site with two idle nodes, and a job of the run that may be asked for."""
    scene.start()
    scene.answers.say("sinfo", SITE)
    scene.answers.say("squeue", "Dependency\nBeginTime\n")
    sbatch = scene.answers.folder / "sbatch"
    sbatch.write_text(f'#!/bin/sh\ncat "$2" > {scene.answers.folder}/tested\n')
    return scene


def has_room(scene: Scene, number: int) -> bool:
    return scene.executor.has_room(scene.run, scene.store, scene.id("train"), "gpu", number)


def test_idle_nodes_that_the_job_could_use_are_room(site: Scene) -> None:
    assert has_room(site, 2)
    script = (site.answers.folder / "tested").read_text()
    assert "#SBATCH --exclude=node1,node4,node5\n" in script, "its own, and those of others"
    assert "#SBATCH --nodes=2\n" in script
    assert "#SBATCH --partition=gpu\n" in script
    assert not has_room(site, 3)


@pytest.mark.parametrize("reason", ["Priority", "Resources"])
def test_nodes_that_somebody_waits_for_are_none(site: Scene, reason: str) -> None:
    site.answers.say("squeue", f"Dependency\n{reason}\n")
    assert not has_room(site, 1)


def test_nodes_that_the_job_cannot_use_are_none(site: Scene) -> None:
    site.answers.say("sbatch", "allocation failure: Requested node configuration\n", code=1)
    assert not has_room(site, 2)


@pytest.mark.parametrize("command", ["sinfo", "squeue", "sbatch"])
def test_a_scheduler_that_fails_has_none(site: Scene, command: str) -> None:
    site.answers.say(command, "slurm_load: Unable to contact slurm controller\n", code=1)
    assert not has_room(site, 1)
