"""Which jobs a reservation stands in the way of, by what scontrol says."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.control.slurm.executor import SlurmExecutor
from orchestrator.control.slurm.reservations import reservations
from tests.unit.orchestrator.control.slurm.scene import Scene
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe
from tests.unit.orchestrator.scheduler import Answers

SITE = """\
low*|8|8000|(null)|infinite|1-infinite|2|up|NO|OFF|n[1-2]
spare|8|8000|(null)|infinite|1-infinite|1|up|NO|OFF|n3
"""
HEADLESS = ["corpus", "codebook", "tokenize", "train"]
"""What has jobs besides those of one node without accelerators."""
ALL = [i.node for i in plan_of(recipe()).leaders]
SCONTROL = """\
#!/bin/sh
echo "scontrol $*" >> {folder}/asked
case "$2 $3" in
  hostnames*) case $3 in *1-2*) echo n1; echo n2;; *) echo $3;; esac;;
  reservation*) cat {folder}/reservations;;
esac
"""


def reserve(answers: Answers, nodes: str, *, in_min: float, for_min: float = 60) -> None:
    """One reservation, as scontrol shows it."""
    answers.say("sinfo", SITE)
    shown = [
        time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 60 * at))
        for at in (in_min, in_min + for_min)
    ]
    (answers.folder / "reservations").write_text(
        f"ReservationName=maint StartTime={shown[0]} EndTime={shown[1]} Duration=01:00:00 "
        f"Nodes={nodes} NodeCnt=2 PartitionName=(null) Flags=MAINT,SPEC_NODES State=INACTIVE\n"
    )
    scontrol = answers.folder / "scontrol"
    scontrol.write_text(SCONTROL.format(folder=answers.folder))
    scontrol.chmod(0o755)


def remarks(tmp_path: Path, **slurm: Any) -> list[str]:
    resources = {"train": {"walltime_min": 90, "nodes": 2}}
    spec = cluster(str(tmp_path), backend="slurm", slurm=slurm, resources=resources)
    return list(SlurmExecutor().remarks(plan_of(recipe()), spec))


def test_what_does_not_end_before_a_reservation_is_named(answers: Answers, tmp_path: Path) -> None:
    reserve(answers, "n[1-2]", in_min=100.5)
    (line,) = remarks(tmp_path)
    assert line.startswith("reservation maint from 20")
    assert "resources.corpus, resources.encoder, " in line
    assert "resources.train" not in line, "90 minutes"
    assert line.endswith("only after it; wait, or lower walltime_min below 100")


@pytest.mark.parametrize(
    ("nodes", "in_min", "slurm", "blocked"),
    [
        ("n[1-2]", 300, {}, []),
        ("n[1-2]", 50, {"walltime_min": 49}, []),
        ("n[1-2]", 50, {"walltime_min": 60, "partition": "spare"}, []),
        ("n[1-2]", 50, {"walltime_min": 60, "head": {"partition": "low,spare"}}, HEADLESS),
        ("n[1-2]", 50, {"reservation": "maint"}, []),
        ("n1", 50, {"walltime_min": 60}, ["train"]),
        ("n[1-2]", -30, {"walltime_min": 10, "sentinel": {"partition": "spare"}}, ALL),
        ("n[1-2]", -90, {}, []),
        ("(null)", 50, {}, []),
    ],
)
def test_who_is_in_the_way(
    answers: Answers, tmp_path: Path, nodes: str, in_min: float, slurm: Any, blocked: list[str]
) -> None:
    reserve(answers, nodes, in_min=in_min)
    line = "".join(remarks(tmp_path, **slurm))
    named = [word.strip(",") for word in line.split() if word.startswith(("resources", "slurm."))]
    assert named == [f"resources.{node}" for node in blocked]


def test_a_site_without_any_is_asked_once(answers: Answers, tmp_path: Path) -> None:
    answers.say("scontrol", "No reservations in the system\n")
    assert remarks(tmp_path) == []
    assert answers.asked == ["scontrol show reservation --oneliner"]
    answers.say("scontrol", "scontrol: error: no route\n", code=1)
    assert reservations() == ()
    answers.say("scontrol", "ReservationName=odd StartTime=Unknown EndTime=soon Nodes=n1\n")
    assert reservations() == ()


def test_who_submits_is_told(scene: Scene) -> None:
    reserve(scene.answers, "n[1-2]", in_min=30)
    started = scene.executor.start(scene.run, scene.store)
    assert [line.partition(" from ")[0] for line in started.remarks] == ["reservation maint"]
