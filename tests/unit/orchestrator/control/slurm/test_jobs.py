"""What sbatch is given, as text; and which jobs a plan becomes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.backends.base import JobRef
from orchestrator.backends.slurm import job_options, script
from orchestrator.control.slurm.jobs import PlannedJob, SubmissionContext, jobs_of
from orchestrator.ledger.run import RunFolder, to_yaml
from orchestrator.ledger.storage import Storage
from orchestrator.plan.planner import Plan
from orchestrator.spec.cluster import Cluster, Environment, Resources
from orchestrator.spec.loader import parse_cluster
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe, swept

PLAN = plan_of(swept(recipe(), **{"model.init": ["twist", "cold"]}))
RESOURCES = {
    "tokenize": {"nodes": 3, "max_workers": 12, "gpus_per_node": 4, "cpus_per_worker": 6},
    "train": {"nodes": 2, "gpus_per_node": 8, "cpus_per_worker": 10, "mem_gb": 900.5},
}


def where(**slurm: Any) -> Cluster:
    return cluster(
        "/shared/store",
        backend="slurm",
        resources=RESOURCES,
        environment={"venv": "/shared/venv", "setup": ["module load cuda/12.4"]},
        slurm={"partition": "gpu", "account": "speech", **slurm},
    )


def context(spec: Cluster, **more: Any) -> SubmissionContext:
    run = RunFolder(Storage("/shared/store/runs/small"))
    return SubmissionContext(run=run, store_url="/shared/store", cluster=spec, submission=1, **more)


def planned(spec: Cluster, plan: Plan = PLAN, **more: Any) -> tuple[PlannedJob, ...]:
    return jobs_of(context(spec, **more), plan, [i for i in plan.instances if i.leader == i.id])


def text(part: PlannedJob) -> str:
    after = [JobRef(backend="slurm", id=f"<{instance}>") for instance in part.after]
    return script(part.job, after).replace(sys.executable, "PYTHON")


def scripts(parts: tuple[PlannedJob, ...]) -> str:
    return "\n".join(f"# ==> {part.name} <==\n{text(part)}" for part in parts)


def test_all_jobs_of_a_run(golden: Callable[[str, str], None]) -> None:
    golden("sbatch_run.txt", scripts(planned(where())))


def test_every_option(golden: Callable[[str, str], None]) -> None:
    spec = where(
        qos="long",
        constraint="a100&nvlink|h100",
        exclude=["node3", "node[7-9]"],
        reservation="friday",
        nice=100,
        gres="gpu:a100",
        requeue=False,
        extra={"mail-type": "FAIL", "wckey": '\'; $(touch /tmp/x) "`id`" #'},
        head={"partition": "cpu", "mem_gb": 16, "cpus": 2, "walltime_min": 2880},
        workers={"partition": "spare", "qos": "scavenger", "constraint": None},
        stages={"tokenize": {"account": "data"}},
    )
    environment = {"container": "/shared/im age.sif", "setup": ["echo 'it'\"'\"'s'"]}
    spec = spec.model_copy(update={"environment": spec.environment.model_copy(update=environment)})
    chosen = [p for p in planned(spec, exclude=("node5",)) if p.instance.startswith("tokenize")]
    pyxis = spec.environment.model_copy(update={"container_runtime": "pyxis"})
    train = next(
        p for p in planned(spec.model_copy(update={"environment": pyxis})) if "train" in p.name
    )
    golden("sbatch_options.txt", scripts((*chosen, train)))


def test_a_null_takes_back_what_holds_for_all_jobs_in_the_runs_record_too() -> None:
    spec = where(constraint="a100", head={"constraint": None})
    kept = parse_cluster(yaml.safe_load(to_yaml(spec)), where="cluster.yaml")
    for known in (spec, kept):
        by_stage = {p.instance.split("-")[0]: script(p.job) for p in planned(known)}
        assert "--constraint" not in by_stage["pack"]
        assert "#SBATCH --constraint=a100" in by_stage["train"]
    assert scripts(planned(spec)) == scripts(planned(kept))


@pytest.mark.parametrize(("line", "runs"), [("false", False), ("true", True)])
def test_a_set_up_line_that_fails_ends_the_job(tmp_path: Path, line: str, runs: bool) -> None:
    spec = where().model_copy(update={"environment": Environment(setup=(line,))})
    srun = tmp_path / "srun"
    srun.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    srun.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash"], input=script(planned(spec)[0].job), text=True, env=env)
    assert (done.returncode == 0, (tmp_path / "ran").exists()) == (runs, runs)


@pytest.mark.parametrize(
    ("nodes", "asked"), [({"min": 2, "max": 4}, "2-4"), ({"min": 3, "max": 3}, "3"), (3, "3")]
)
def test_a_training_may_start_with_fewer_nodes(nodes: object, asked: str) -> None:
    resources = {"train": Resources.model_validate({"nodes": nodes, "ranks_per_node": 2})}
    spec = where().model_copy(update={"resources": resources})
    train = next(p for p in planned(spec) if p.instance.startswith("train"))
    text = script(train.job)
    assert f"#SBATCH --nodes={asked}\n" in text
    tasks = [
        line.startswith("#SBATCH") for line in text.splitlines() if "--ntasks-per-node=1" in line
    ]
    assert tasks == [asked == "3"], "of a range Slurm would give the fewest"


def test_flags_and_tiny_memories() -> None:
    text = script(planned(where(extra={"exclusive": True}, head={"mem_gb": 0.0001}))[0].job)
    assert "#SBATCH --exclusive\n" in text
    assert "#SBATCH --mem=1M\n" in text, "0 would be all of the node's"


@pytest.mark.parametrize(
    ("form", "asked"),
    [
        (None, ["#SBATCH --mem=6144M"]),
        ("per_node", ["#SBATCH --mem=6144M"]),
        ("per_cpu", ["#SBATCH --mem-per-cpu=256M"]),
        ("whole_node", ["#SBATCH --mem=0"]),
        ("none", []),
    ],
)
def test_memory_is_asked_for_as_the_site_wants_it(form: str | None, asked: list[str]) -> None:
    parts = planned(where(memory=form, workers={"mem_gb": 6}, head={"memory": "none"}))
    workers = next(p for p in parts if p.name.startswith("tokenize") and p.kind == "workers")
    lines = [line for line in script(workers.job).splitlines() if "mem" in line]
    assert lines == asked, "24 cores"
    assert "--mem" not in script(parts[0].job), "heads have a form of their own"


@pytest.mark.parametrize(
    ("slurm", "asked"),
    [
        ({}, ("2048M", 60, 1)),
        ({"head": {"walltime_min": 30, "mem_gb": 1, "cpus": 4}}, ("1024M", 30, 1)),
        ({"walltime_min": 2880, "mem_gb": 64}, ("2048M", 60, 1)),
        ({"sentinel": {"walltime_min": 90, "mem_gb": 3, "cpus": 2}}, ("3072M", 90, 2)),
    ],
)
def test_what_a_sentinel_asks_for(slurm: dict[str, Any], asked: tuple[str, int, int]) -> None:
    text = script(planned(where(**slurm))[-1].job)
    memory, minutes, cpus = asked
    lines = (f"--mem={memory}", f"--time={minutes}", f"--cpus-per-task={cpus}")
    assert all(f"#SBATCH {line}\n" in text for line in lines)


def test_a_sentinel_may_have_a_partition_of_its_own() -> None:
    parts = planned(where(head={"partition": "cpu"}, sentinel={"partition": "tiny"}))
    assert "#SBATCH --partition=tiny\n" in script(parts[-1].job)


def test_places_of_the_environment_are_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGES", "/shared/images")
    spec = where().model_copy(
        update={"environment": Environment(container="${env:IMAGES}/x.sif", venv="${env:IMAGES}/v")}
    )
    assert "/shared/images/x.sif /shared/images/v/bin/python -u" in script(planned(spec)[0].job)


def test_words_stay_words() -> None:
    """Bash runs the command line of the script and nothing that stands in a value."""
    spec = where(constraint="it's $(touch pwned) `id`")
    part = planned(spec)[0]
    odd = replace(part.job, argv=("printf", r"%s\n", "a b", "$(id)", "it's", "`id`", "#"))
    lines = script(odd).splitlines()
    command = next(line for line in lines if line.startswith("srun"))
    words = shlex.split(command)
    done = subprocess.run(
        ["bash", "-c", shlex.join(words[words.index("printf") :])], capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["a b", "$(id)", "it's", "`id`", "#"]
    assert [line for line in lines if "pwned" in line] == [
        "#SBATCH --constraint='it'\"'\"'s $(touch pwned) `id`'"
    ]


def test_data_stages_have_workers_and_others_have_none() -> None:
    parts = planned(where())
    workers = [p for p in parts if p.kind == "workers"]
    assert [(p.after, p.job.start) for p in workers] == [
        ((p.instance,), "started") for p in workers
    ]
    assert {p.instance.split("-")[0] for p in workers} == {"corpus", "codebook", "tokenize"}
    sizes = {p.instance.split("-")[0]: p.job.shape for p in workers}
    assert (sizes["tokenize"].array, sizes["tokenize"].cpus, sizes["tokenize"].gpus) == (3, 24, 4)


def test_jobs_come_after_what_they_need_and_never_after_workers() -> None:
    parts = planned(where())
    stages = {p.instance: p for p in parts if p.kind == "stage"}
    for instance_id, part in stages.items():
        needs = PLAN.instance(instance_id).needs.values()
        assert set(part.after) == {PLAN.instance(n).leader for n in needs}
    (sentinel,) = [p for p in parts if p.kind == "sentinel"]
    assert set(sentinel.after) == set(stages)
    assert sentinel.job.start == "failed"


def test_what_is_done_is_not_waited_for() -> None:
    train = next(i for i in PLAN.instances if i.stage == "train")
    parts = jobs_of(context(where()), PLAN, [train])
    assert [p.kind for p in parts] == ["stage", "sentinel"]
    assert parts[0].after == ()


def test_an_array_that_is_too_large_is_split() -> None:
    parts = planned(where(), max_array=2)
    sizes = [
        p.job.shape.array for p in parts if p.name.startswith("tokenize") and p.job.shape.array
    ]
    assert sizes == [2, 1]
    assert len({p.name for p in parts}) == len({p.job.tag for p in parts}) == len(parts)


def test_no_sentinel_where_none_is_wanted() -> None:
    assert "sentinel" not in {p.kind for p in planned(where(max_resumes=0))}


def test_nodes_that_failed_alone_are_left_out_everywhere() -> None:
    parts = planned(where(exclude=["n1"], head={"exclude": ["n2"]}), exclude=("n3",))
    train = next(p for p in parts if p.instance.startswith("train"))
    assert job_options(train.job).sbatch.exclude == ("n1", "n3")
    corpus = next(p for p in parts if p.instance.startswith("corpus"))
    assert job_options(corpus.job).sbatch.exclude == ("n1", "n2", "n3")
