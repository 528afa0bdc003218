"""Which jobs no partition could ever start, by what sinfo says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.control.slurm.executor import SlurmExecutor
from orchestrator.control.slurm.partitions import minutes_of, node_kinds
from orchestrator.plan.stages import STAGES
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe
from tests.unit.orchestrator.scheduler import Answers

SITE = """\
cpu*|4|8000|(null)|1-00:00:00|1-infinite|3|up|NO|OFF|c[1-3]
gpu|32|256000|gpu:a100:8(S:0-1),nvme:1|2-00:00:00|1-2|4|up|EXCLUSIVE|REQUEUE|g[1-4]
gpu|16|128000|gpu:v100:4|2-00:00:00|1-2|10|up|EXCLUSIVE|REQUEUE|v[1-10]
small|2|1|(null)|30:00|1|1|up|YES:4|CANCEL|s1
"""
SMALL = {"mem_gb": 1, "walltime_min": 20}
HERE = "or name another partition in slurm (here: cpu, gpu, small)"


@pytest.fixture
def site(answers: Answers) -> Answers:
    answers.say("sinfo", SITE)
    return answers


def too_large(tmp_path: Path, resources: dict[str, Any], **slurm: Any) -> list[str]:
    where = cluster(str(tmp_path / "store"), backend="slurm", resources=resources, slurm=slurm)
    return list(SlurmExecutor().too_large(plan_of(recipe()), where, "c.yaml"))


def test_a_site_is_asked_one_question(site: Answers) -> None:
    kinds = node_kinds()
    assert [(k.partition, k.is_default, k.cpus, k.max_min) for k in kinds] == [
        ("cpu", True, 4, 1440),
        ("gpu", False, 32, 2880),
        ("gpu", False, 16, 2880),
        ("small", False, 2, 30),
    ]
    assert [k.max_nodes for k in kinds] == [float("inf"), 2, 2, 1]
    assert [k.num_gpus("gpu") for k in kinds] == [0, 8, 4, 0]
    assert [k.num_gpus("gpu:a100") for k in kinds] == [0, 8, 0, 0]
    assert len(site.asked) == 1


def test_what_fits_is_no_problem(tmp_path: Path, site: Answers) -> None:
    assert too_large(tmp_path, {}) == []
    train = {"nodes": 2, "gpus_per_node": 8, "cpus_per_worker": 4, "mem_gb": 200}
    assert too_large(tmp_path, {"train": train}, stages={"train": {"partition": "gpu"}}) == []
    assert too_large(tmp_path, {"train": train}, stages={"train": {"partition": "cpu,gpu"}}) == []


@pytest.mark.parametrize(
    ("stage", "asked", "partition", "says"),
    [
        (
            "tokenize",
            {"cpus_per_worker": 8, "max_workers": 1},
            "cpu",
            "no node of partition cpu has the 8 CPUs, 4 GB that are asked of one (4 CPUs, "
            "7.81 GB); lower cpus_per_worker",
        ),
        (
            "pack",
            {"mem_gb": 64},
            "cpu",
            "no node of partition cpu has the 1 CPU, 64 GB that are asked of one (4 CPUs, "
            "7.81 GB); lower mem_gb",
        ),
        (
            "train",
            {"gpus_per_node": 1},
            "cpu",
            "no node of partition cpu has the 1 CPU, 4 GB, 1 GPU that are asked of one (4 CPUs, "
            "7.81 GB); lower gpus_per_node",
        ),
        (
            "train",
            {"gpus_per_node": 9},
            "gpu",
            "no node of partition gpu has the 9 CPUs, 4 GB, 9 GPUs that are asked of one (32 CPUs, "
            "250 GB, 8 GPUs; 16 CPUs, 125 GB, 4 GPUs); lower gpus_per_node",
        ),
        (
            "train",
            {"nodes": 3, "gpus_per_node": 4},
            "gpu",
            "3 nodes asked, partition gpu gives 2 of this size; lower nodes",
        ),
        (
            "corpus",
            {"walltime_min": 3000},
            "cpu",
            "walltime_min: 3000 asked, partition cpu allows 1440; lower walltime_min",
        ),
    ],
)
def test_what_no_partition_could_hold(
    tmp_path: Path, site: Answers, stage: str, asked: dict[str, Any], partition: str, says: str
) -> None:
    del site
    lines = too_large(tmp_path, {stage: asked}, stages={stage: {"partition": partition}})
    assert set(lines) == {f"c.yaml: resources.{stage}: {says}, {HERE}"}


def test_a_partition_that_does_not_exist_is_named_once(tmp_path: Path, site: Answers) -> None:
    del site
    line = "c.yaml: slurm: partition gpus does not exist; name one of cpu, gpu, small"
    assert too_large(tmp_path, {}, partition="gpus") == [line]
    assert too_large(tmp_path, {}, stages={"pack": {"partition": "cpu,gpus"}}) == [line]


def test_one_partition_of_several_is_enough(tmp_path: Path, site: Answers) -> None:
    del site
    (line,) = too_large(
        tmp_path, {"pack": {"mem_gb": 999}}, stages={"pack": {"partition": "cpu,gpu"}}
    )
    assert line.startswith("c.yaml: resources.pack: no node of partition cpu has the 1 CPU, 999 ")
    assert "; no node of partition gpu has " in line


def test_the_sentinels_job_is_looked_at_too(tmp_path: Path, site: Answers) -> None:
    """It asks for no more than heads do, where the file says that of heads."""
    del site
    small = {stage.name: SMALL for stage in STAGES}
    there = {"stages": {"train": {"partition": "cpu"}}}
    assert (
        too_large(tmp_path, small, head={"partition": "small", "walltime_min": 20}, **there) == []
    )
    head = {"partition": "small"}
    (line,) = too_large(tmp_path, small, head=head, **there)
    assert line == (
        "c.yaml: slurm.sentinel: walltime_min: 60 asked, partition small allows 30; lower "
        "walltime_min, " + HERE
    )
    assert too_large(tmp_path, small, head=head, sentinel={"walltime_min": 15}, **there) == []
    assert too_large(tmp_path, small, head=head, sentinel={"partition": "cpu"}, **there) == []


def test_what_the_cluster_file_says_of_cores_is_named(tmp_path: Path, site: Answers) -> None:
    del site
    lines = too_large(tmp_path, {}, workers={"cpus": 5}, partition="cpu")
    assert len(lines) == 3, "corpus, codebook and tokenize"
    assert all("has the 5 CPUs, 4 GB" in line and "lower cpus in slurm" in line for line in lines)


def test_another_quality_of_service_may_allow_more_time(tmp_path: Path, site: Answers) -> None:
    del site
    assert too_large(tmp_path, {"corpus": {"walltime_min": 3000}}, qos="long") == []


def test_a_site_that_does_not_answer_is_not_judged(tmp_path: Path, answers: Answers) -> None:
    answers.say("sinfo", "sinfo: error: Unable to contact slurm controller", code=1)
    assert too_large(tmp_path, {"pack": {"mem_gb": 999}}) == []
    answers.say("sinfo", "cpu|4|8000|(null)|infinite|1-infinite|3|up|NO|OFF|c[1-3]\n")
    assert too_large(tmp_path, {"pack": {"mem_gb": 999}}) == [], "no default partition"


@pytest.mark.parametrize(
    ("said", "minutes"),
    [
        ("UNLIMITED", float("inf")),
        ("infinite", float("inf")),
        ("30:00", 30),
        ("00:30:00", 30),
        ("1-12:00:00", 2160),
        ("2-00:00:30", 2880.5),
    ],
)
def test_slurms_times(said: str, minutes: float) -> None:
    assert minutes_of(said) == minutes
