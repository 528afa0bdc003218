"""What doctor makes of a cluster's words; the probes themselves run in tests/slurm."""

from __future__ import annotations

from orchestrator.backends.slurm import SlurmBackend
from orchestrator.control.slurm.doctor import examine_slurm
from tests.unit.orchestrator.recipes import cluster
from tests.unit.orchestrator.scheduler import Answers

CONFIG = """\
AccountingStorageType   = accounting_storage/none
JobRequeue              = 0
MaxArraySize            = 501
SLURM_VERSION           = 20.11.9
"""
PARTITION = (
    "PartitionName=gpu Default=YES MaxTime=1:00:00 TotalNodes=1 PreemptMode=REQUEUE State=UP\n"
)


def test_a_cluster_that_cannot_do_it(answers: Answers, tmp_path) -> None:
    scontrol = answers.folder / "scontrol"
    answers.say("config", CONFIG)
    answers.say("partition", PARTITION)
    scontrol.write_text(f"#!/bin/sh\ncat {answers.folder}/$2.txt\n")
    scontrol.chmod(0o755)
    answers.say("sbatch", "sbatch: error: no\n", code=1)
    answers.say("squeue", "")
    spec = cluster(
        str(tmp_path / "store"),
        backend="slurm",
        resources={"train": {"nodes": 4}},
        slurm={"head": {"partition": "cpu"}},
    )
    found = {check.name: check for check in examine_slurm(spec, SlurmBackend())}
    assert not found["slurm"].passed
    assert "set slurm.requeue: false" in found["requeue"].detail
    assert not found["accounting"].passed
    assert found["accounting"].is_optional
    assert found["array size"].detail.startswith("500 tasks")
    assert found["partition cpu"].detail == "does not exist; this cluster has gpu"
    assert found["default partition"].detail == (
        "walltime_min 240 asked, 60 allowed; 4 nodes asked, 1 there"
    )
    assert "no" in found["head node"].detail
    assert not (tmp_path / "store").exists(), "what it made is gone"


def test_no_slurm_at_all(answers: Answers, tmp_path) -> None:
    answers.say("scontrol", "scontrol: error: slurm_load_ctl_conf: no route\n", code=1)
    (check,) = examine_slurm(cluster(str(tmp_path), backend="slurm"), SlurmBackend())
    assert not check.passed
    assert "no route" in check.detail
