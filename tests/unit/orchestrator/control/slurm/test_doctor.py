"""What doctor makes of a cluster's words; the probes themselves run in tests/slurm."""

from __future__ import annotations

import re

import pytest

from orchestrator.backends.slurm import SlurmBackend, script
from orchestrator.control.executor import Check
from orchestrator.control.slurm.doctor import every_job, examine_slurm
from orchestrator.plan.stages import STAGES
from orchestrator.spec.cluster import Cluster
from tests.unit.orchestrator.ledger.conftest import mounted
from tests.unit.orchestrator.recipes import cluster
from tests.unit.orchestrator.scheduler import Answers

CONFIG = """\
AccountingStorageType   = accounting_storage/none
JobRequeue              = 0
MaxArraySize            = 501
SLURM_VERSION           = 20.11.9
"""
GPU = "gpu*|8|64000|gpu:4|1:00:00|1-infinite|1|up|NO|REQUEUE|g1\n"


def test_a_cluster_that_cannot_do_it(answers: Answers, tmp_path) -> None:
    answers.say("scontrol", CONFIG)
    answers.say("sinfo", GPU)
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
    assert found["partition gpu"] == Check(
        "partition gpu", True, "1 node (8 CPUs, 62.5 GB, 4 GPUs), preemption REQUEUE"
    )
    assert found["partition cpu"].detail == "does not exist; this cluster has gpu"
    assert found["asked in resources.train"].detail.startswith("4 nodes asked, partition gpu gives")
    workers = found["asked in resources.corpus"].detail
    assert "walltime_min: 240 asked, partition gpu allows 60; lower walltime_min" in workers
    assert "no" in found["head node"].detail
    assert not (tmp_path / "store").exists(), "what it made is gone"


def test_no_slurm_at_all(answers: Answers, tmp_path) -> None:
    answers.say("scontrol", "scontrol: error: slurm_load_ctl_conf: no route\n", code=1)
    (check,) = examine_slurm(cluster(str(tmp_path), backend="slurm"), SlurmBackend())
    assert not check.passed
    assert "no route" in check.detail


SITE = """\
#!/bin/sh
# Takes memory only in one form, and no job of more than 30 minutes.
case $1 in --test-only) ;; *) echo "sbatch: error: no probe" >&2; exit 1;; esac
limit=$(sed -n 's/^#SBATCH --time=//p' "$2")
{says} || {{ echo "sbatch: error: memory is not asked for like this" >&2; exit 1; }}
[ "$limit" -le 30 ] || {{ echo "sbatch: error: Requested time limit is invalid" >&2; exit 1; }}
"""
FORMS = {
    "per_node": "grep -q '^#SBATCH --mem=[1-9]' $2",
    "per_cpu": "grep -q '^#SBATCH --mem-per-cpu=' $2",
    "whole_node": "grep -q '^#SBATCH --mem=0$' $2",
    "none": "! grep -q '^#SBATCH --mem' $2",
}


def checks_at(answers: Answers, spec: Cluster, form: str) -> dict[str, Check]:
    answers.say("scontrol", "JobRequeue = 1\nSLURM_VERSION = 23.11.4\nMaxArraySize = 1\n")
    answers.say("sinfo", GPU)
    answers.say("squeue", "")
    sbatch = answers.folder / "sbatch"
    sbatch.write_text(SITE.format(says=FORMS[form]))
    sbatch.chmod(0o755)
    return {check.name: check for check in examine_slurm(spec, SlurmBackend())}


@pytest.mark.parametrize("form", ["per_cpu", "whole_node", "none"])
def test_the_form_in_which_a_site_wants_memory_is_found(
    answers: Answers, tmp_path, form: str
) -> None:
    spec = cluster(str(tmp_path / "store"), backend="slurm", slurm={"walltime_min": 20})
    refused = [check for name, check in checks_at(answers, spec, form).items() if "job " in name]
    assert refused
    assert all(f"the site takes it with memory: {form}" in check.detail for check in refused)
    slurm = {"walltime_min": 20, "memory": form}
    spec = cluster(str(tmp_path / "store"), backend="slurm", slurm=slurm)
    found = checks_at(answers, spec, form)
    assert (
        found["jobs"].detail == f"sbatch takes all {len(every_job(spec))} kinds, the sentinel's too"
    )
    assert "every worker is a job of its own" in found["array size"].detail


@pytest.mark.parametrize("options", ["size=64k", "size=1m", "ro"])
def test_a_store_that_takes_no_probe_is_an_answer_and_nothing_stays(
    answers: Answers, tmp_path, options: str
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    with mounted(store, options) as folder:
        spec = cluster(str(folder), backend="slurm", slurm={"walltime_min": 20})
        found = checks_at(answers, spec, "per_node")
        for part in ("head node", "training node"):
            assert re.search("No space left|Read-only file system", found[part].detail)
        assert list(folder.iterdir()) == []


def test_the_sentinels_job_is_tried_too(answers: Answers, tmp_path) -> None:
    short = {stage.name: {"walltime_min": 20} for stage in STAGES}
    found = checks_at(answers, spec_of(tmp_path, resources=short), "per_node")
    refused = {name: check.detail for name, check in found.items() if name.startswith("job ")}
    assert list(refused) == ["job sentinel"]
    assert "time limit is invalid; look at slurm and resources" in refused["job sentinel"]


def spec_of(tmp_path, **said) -> Cluster:
    return cluster(str(tmp_path / "store"), backend="slurm", **said)


def test_every_kind_of_job_is_there_once(tmp_path) -> None:
    plain = every_job(spec_of(tmp_path))
    assert [part.kind for part in plain] == ["stage", "workers", "sentinel"], "all ask for the same"
    spec = spec_of(tmp_path, resources={"tokenize.sblimp": {"mem_gb": 9, "nodes": 2}})
    own = [part for part in every_job(spec) if part.instance == "tokenize.sblimp"]
    assert [part.kind for part in own] == ["stage", "workers"]
    assert all("#SBATCH --mem=9216M" in script(part.job) for part in own)
    assert "#SBATCH --array=0-1%2" in script(own[1].job)


@pytest.mark.parametrize(
    ("most", "arrays"), [(1000, ["0-29%30"]), (9, ["0-8%9", "0-2%3"]), (0, [])]
)
def test_arrays_are_tried_as_long_as_the_site_has_them(
    tmp_path, most: int, arrays: list[str]
) -> None:
    spec = spec_of(tmp_path, resources={"tokenize": {"nodes": 30, "max_workers": 30, "mem_gb": 3}})
    own = [p for p in every_job(spec, most) if p.kind == "workers" and p.instance == "tokenize"]
    lines = [ln for p in own for ln in script(p.job).splitlines() if "--array" in ln]
    assert [line.removeprefix("#SBATCH --array=") for line in lines] == arrays
