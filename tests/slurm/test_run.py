"""The smoke recipe on four nodes, from `submit` to the report, and what it costs the scheduler."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from pathlib import Path

from tests.slurm.cluster import SlurmCluster
from tests.slurm.rig import SETTINGS, SlurmSmoke
from tests.smoke import RECIPE, Smoke

LATER = {"slurm": {"partition": "low", "extra": {"begin": "now+1hour"}}}
"""Jobs that stay in the queue."""


def test_from_submit_to_the_report(
    slurm: SlurmCluster, undisturbed: tuple[SlurmSmoke, str]
) -> None:
    smoke, name = undisturbed
    assert {s: smoke.causes(name, s) for s in ("corpus", "codebook", "tokenize", "train")} == {
        "corpus": [""],
        "codebook": [""],
        "tokenize": [""],
        "train": [""],
    }
    (attempt,) = smoke.attempts(name, "train")
    hosts = {
        attempt.storage.read_json(f"beats/{beat}")["process"]["host"].split("/")[0]
        for beat in attempt.storage.children("beats")
    }
    assert len(attempt.storage.children("beats")) == 4
    if slurm.has_own_networks:  # else all nodes have this machine's name
        assert len(hosts) == 2, "two ranks on each of two nodes"
    page = smoke.folder / "store" / "runs" / name / "report.html"
    assert "succeeded" in page.read_text(), "the last job writes it before the run has succeeded"
    assert smoke.orchestrator("verify", name).returncode == 0
    assert "attempt" in smoke.orchestrator("logs", name).stdout


def test_units_are_those_of_the_local_backend(
    undisturbed: tuple[SlurmSmoke, str], material: Path, tmp_path: Path
) -> None:
    local = Smoke.create(tmp_path / "run", material)
    without = {"train.steps": "1", "evaluate.perplexity": "null", "evaluate.continuations": "null"}
    words = [w for k, v in {**SETTINGS, **without}.items() for w in ("--set", f"{k}={v}")]
    local.finish(local.submit(*words))
    units = {path: sha for path, sha in local.fingerprint().items() if "/shards/" in path}
    assert len(units) > 3
    assert units.items() <= undisturbed[0].fingerprint().items()


def test_two_shells_submit_one_run(slurm: SlurmCluster, material: Path, tmp_path: Path) -> None:
    smoke = SlurmSmoke.on(slurm, tmp_path / "run", material, **LATER)
    names: list[str] = []
    shells = [threading.Thread(target=lambda: names.append(smoke.submit())) for _ in range(2)]
    for shell in shells:
        shell.start()
    for shell in shells:
        shell.join()
    assert len(set(names)) == 1
    queued = [row.name for row in slurm.queue() if "workers" not in row.name]
    assert len(queued) == len(set(queued)) == 11, "ten stages and the sentinel"
    assert smoke.status(names[0])["state"] == "queued"
    again = smoke.orchestrator("resume", names[0])
    assert "already running" in again.stderr
    assert [row.name for row in slurm.queue() if "workers" not in row.name] == queued
    smoke.orchestrator("cancel", names[0])
    assert slurm.queue() == []
    assert smoke.status(names[0])["state"] == "cancelled"


def test_what_it_costs_the_scheduler(slurm: SlurmCluster, smoke: SlurmSmoke) -> None:
    """Three jobs and a sentinel, in fewer than ten commands; one or two for each look."""
    smoke.change(**LATER)
    name = smoke.submit(**{"evaluate.perplexity.bootstrap_samples": "100"})
    assert len(slurm.commands()) < 10
    asked = Counter(c.split()[0] for c in slurm.commands())
    # Nodes; twice the limit of arrays, once the reservations; the jobs.
    assert asked == {"sinfo": 1, "scontrol": 3, "sbatch": 4}
    slurm.forget()
    smoke.status(name)
    assert [c.split()[0] for c in slurm.commands()] == ["sacct", "squeue"]


def test_a_thousand_workers_cost_what_one_does_and_more_are_split(
    slurm: SlurmCluster, material: Path, tmp_path: Path
) -> None:
    wide = {"tokenize": {"nodes": 2300, "max_workers": 2300, "mem_gb": 1}}
    smoke = SlurmSmoke.on(slurm, tmp_path / "run", material, resources=wide, **LATER)
    name = smoke.submit()
    arrays = [c for c in slurm.commands() if re.search("/tokenize-[0-9a-f]+-workers", c)]
    assert len(arrays) == 3
    sizes = re.findall(
        r"--array=0-(\d+)",
        "".join(Path(c.split()[1]).read_text() for c in arrays),
    )
    assert sum(int(last) + 1 for last in sizes) == 2300
    assert len(slurm.queue()) == 2300 + 14, (
        "ten stages, a worker each of the corpus', the targets' and the codebook's, the sentinel"
    )
    slurm.forget()
    assert smoke.status(name)["state"] == "queued"
    assert len(slurm.commands()) == 2
    smoke.orchestrator("cancel", name)
    assert slurm.queue() == []


def test_an_sbatch_that_dies_after_it_was_accepted_is_adopted(
    slurm: SlurmCluster, material: Path, tmp_path: Path
) -> None:
    real = slurm.folder / "bin" / "sbatch"
    faulty = tmp_path / "bin" / "sbatch"
    faulty.parent.mkdir()
    faulty.write_text(
        f'#!/bin/sh\n"{real}" "$@" > /dev/null\n'
        "echo 'sbatch: error: Socket timed out on send/recv operation' >&2\nexit 1\n"
    )
    faulty.chmod(0o755)
    smoke = SlurmSmoke.on(slurm, tmp_path / "run", material, **LATER)
    env = {**slurm.env, "PATH": f"{faulty.parent}:{slurm.env['PATH']}"}
    name = SlurmSmoke(smoke.folder, env).submit()
    names = [row.name for row in slurm.queue() if "workers" not in row.name]
    assert len(names) == len(set(names)) == 11
    assert "already running" in smoke.orchestrator("resume", name).stderr
    smoke.orchestrator("cancel", name)
    assert slurm.queue() == []


def test_without_a_scheduler_the_last_known_state_is_shown(
    slurm: SlurmCluster, material: Path, tmp_path: Path
) -> None:
    smoke = SlurmSmoke.on(slurm, tmp_path / "run", material, **LATER)
    name = smoke.submit()
    smoke.status(name)
    slurm.stop_books()
    assert smoke.status(name)["state"] == "queued", "the controller knows"
    slurm.stop_controller()
    shown = smoke.orchestrator("status", name, "--json", check=False)
    assert shown.returncode == 3
    assert json.loads(shown.stdout)["state"] == "queued"
    assert "Traceback" not in shown.stderr
    assert len(shown.stderr.strip().splitlines()) == 1
    refused = smoke.orchestrator("submit", str(RECIPE), check=False)
    assert refused.returncode == 3
    assert "Traceback" not in refused.stderr


def test_what_slurm_refuses_is_the_requests_fault(
    slurm: SlurmCluster, material: Path, tmp_path: Path
) -> None:
    smoke = SlurmSmoke.on(slurm, tmp_path / "run", material, slurm={"constraint": "no-such"})
    refused = smoke.orchestrator("submit", str(RECIPE), check=False)
    assert refused.returncode == 2
    assert "invalid feature specification" in refused.stderr.lower()
    assert slurm.queue() == []


def test_what_no_partition_has_is_refused_before_anything_is_there(
    slurm: SlurmCluster, material: Path, tmp_path: Path
) -> None:
    smoke = SlurmSmoke.on(slurm, tmp_path / "run", material, slurm={"partition": "no-such"})
    refused = smoke.orchestrator("submit", str(RECIPE), check=False)
    assert refused.returncode == 2
    assert (
        "slurm: partition no-such does not exist; name one of cancel, high, low" in refused.stderr
    )
    smoke.change(slurm={}, resources={"tokenize": {"cpus_per_worker": 9, "max_workers": 1}})
    refused = smoke.orchestrator("submit", str(RECIPE), check=False)
    assert refused.returncode == 2
    assert "resources.tokenize: no node of partition low has the 9 CPUs" in refused.stderr
    assert slurm.queue() == []
    assert not list((tmp_path / "run").rglob("plan.json"))


def test_doctor_tries_what_a_run_will_need(
    slurm: SlurmCluster, material: Path, tmp_path: Path
) -> None:
    two_gpus = {"train": {"nodes": 2, "gpus_per_node": 2, "mem_gb": 1}, "tokenize": {"mem_gb": 1}}
    smoke = SlurmSmoke.on(slurm, tmp_path / "run", material, resources=two_gpus)
    said = smoke.orchestrator("doctor").stdout
    assert "ok    training node: GPUs: 2 given, 2 asked" in said
    assert said.count("signals: SIGUSR2 arrives") == 2
    assert slurm.queue() == []
    smoke.change(slurm={"partition": "lwo"})
    refused = smoke.orchestrator("doctor", check=False)
    assert refused.returncode == 1
    assert (
        "FAIL  partition lwo: does not exist; this cluster has cancel, high, low" in refused.stdout
    )
