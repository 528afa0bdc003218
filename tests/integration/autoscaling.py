"""Ray's own autoscaler under a whole run: nodes come for the work, and go when it is done.

A drill: `pytest tests/integration/autoscaling.py`. Nodes are real ``ray start`` processes that a
cloud of this machine starts (`tests.ray_provider`); the store is in a bucket of a real S3 API.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger.attempt import AttemptFolder
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage
from tests.integration.conftest import BUCKET
from tests.integration.test_ray_cluster import on
from tests.metadata_service import MetadataService
from tests.planted import in_arguments, in_files, in_store
from tests.ray_head import RayHead, jobs_on_head
from tests.ray_provider import FULL
from tests.smoke import Smoke, largest_difference_of_losses
from tests.training import wait_for

TIMEOUT_S = 1500
GPU = {"resources": {"CPU": 1, "GPU": 1}, "min_workers": 0, "max_workers": 3}
THREE = {stage: {"max_workers": 3} for stage in ("corpus", "targets", "codebook", "tokenize")}


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[RayHead]:
    """A head that does nothing itself, and three nodes with accelerators to be had."""
    head = RayHead(tmp_path / "ray", num_cpus=0, node_types={"gpu": GPU}, idle_min=0.3)
    head.start()
    yield head
    head.stop()


def numbers(events: list[dict[str, Any]]) -> list[int]:
    """How many nodes there were after each event."""
    counts, now = [0], 0
    for event in events:
        now += {"up": 1}.get(event["kind"], -1)
        counts.append(now)
    return counts


def test_the_smoke_recipe_from_a_bucket_on_nodes_that_come_and_go(
    cloud: RayHead, s3: dict[str, str], calm: tuple[Smoke, str], material: Path, tmp_path: Path
) -> None:
    url = f"s3://{BUCKET}/autoscaled"
    smoke = on(cloud, tmp_path / "s", material, store=url, resources=THREE)
    began = time.time()
    run = smoke.submit()  # both variants of its sweep, whose last stages run beside each other
    folder = RunFolder(Storage(f"{url}/runs/{run}"))
    (supervisor,) = folder.supervisors()
    planted = [cloud.token, s3["AWS_SECRET_ACCESS_KEY"]]
    deadline = time.monotonic() + TIMEOUT_S
    while supervisor.end is None:
        assert time.monotonic() < deadline, smoke.status(run)
        assert in_arguments(planted) == []
        time.sleep(5)
    why = smoke.orchestrator("logs", run, "--first-error", check=False).stdout
    assert smoke.status(run)["state"] == "succeeded", why
    while numbers(cloud.node_events())[-1]:
        assert time.monotonic() < deadline, cloud.node_events()
        time.sleep(1)
    counts = numbers(cloud.node_events())
    assert max(counts) == 3
    artifacts = Storage(f"{url}/artifacts")
    made = {p: d for p, d in calm[0].fingerprint().items() if artifacts.exists(p)}
    assert {path.split("/")[0] for path in made} == {"tokenize", "pack", "train"}
    assert {path: artifacts.digest(path) for path in made} == made
    assert smoke.wait_gone() == []
    assert in_files(planted, tmp_path, *cloud.written) == []
    assert in_store(planted, Storage(url)) == []
    times = [(e["kind"], round(e["at"] - began)) for e in cloud.node_events()]
    print(json.dumps({"nodes": times, "kinds": Counter(k for k, _ in times)}))


def test_a_spot_notice_costs_a_training_no_step(
    cloud: RayHead, calm: tuple[Smoke, str], material: Path, tmp_path: Path
) -> None:
    """The notice comes from a served metadata endpoint, 30 s before the node is killed."""
    steps, every = 3000, 100
    smoke = on(cloud, tmp_path / "s", material)
    smoke.take_artifacts(calm[0], "train", "perplexity", "continuations")
    words = ["--set", "sweep={}", "--set", f"train.steps={steps}", "--until", "train"]
    run = smoke.submit(*words, "--set", f"train.checkpoint.every_steps={every}")
    service, struck = MetadataService(), {}
    folder = RunFolder(Storage(f"{smoke.folder}/store/runs/{run}"))
    train = next(i for i in folder.plan().leaders if i.stage == "train")
    with service.serving() as url:
        wait_for(lambda: list(attempt_of(folder, train.id).steps())[50:], "some steps")
        (node,) = cloud.nodes()
        watcher = cloud.watch_node(node, "--cloud", "aws", "--metadata", url)
        service.ends_at = float(round(time.time() + 30))
        assert in_arguments([cloud.token]) == []
        assert watcher.wait(30) == 0, "it has drained its node"
        assert in_files([cloud.token], *cloud.written) == []
        wait_for(lambda: attempt_of(folder, train.id, 1).end, "its end")
        struck = attempt_of(folder, train.id, 1).end or {}
        assert time.time() < service.ends_at, "saved before the node is killed"
        with suppress(ProcessLookupError):  # Ray's autoscaler may have ended it by now
            os.killpg(node["pid"], signal.SIGKILL)
    status = succeeded(smoke, run)
    assert (struck["state"], struck["cause"]) == ("preempted", "preempted")
    first, second = (list(a.steps()) for a in folder.attempts(train.id))
    assert second[0]["step"] == first[-1]["step"] + 1, "no step is done twice"
    assert status["goodput"].get("lost", 0.0) == 0.0, status["goodput"]
    took_s = second[0]["at"] - first[-1]["at"]
    print(json.dumps({"lost_steps": 0, "from_last_step_to_next_s": round(took_s, 1)}))
    assert smoke.wait_gone() == []


@pytest.mark.parametrize("stage", ["tokenize", "train"])
def test_a_node_that_is_killed_is_replaced_and_changes_no_byte(
    stage: str, cloud: RayHead, material: Path, tmp_path: Path
) -> None:
    """SIGKILL to all processes of a node, as the end of a machine is, while the stage works."""
    words = ["--set", "sweep={}", "--set", f"train.steps={KILLED_STEPS}", "--until", "train"]
    words += ["--set", "corpus.shard_hours=0.0005"]  # many
    undisturbed = Smoke.create(tmp_path / "u", material)
    assert undisturbed.finish(undisturbed.submit(*words)) == 0
    smoke = on(cloud, tmp_path / "s", material)
    smoke.take_artifacts(undisturbed, stage, "pack", "train")
    run = smoke.submit(*words)
    folder = RunFolder(Storage(f"{smoke.folder}/store/runs/{run}"))
    leader = next(i for i in folder.plan().leaders if i.stage == stage)
    wait_for(lambda: is_at_work(folder, leader.id), "its work")
    killed_at = time.time()
    for node in cloud.nodes():
        with suppress(ProcessLookupError):
            os.killpg(node["pid"], signal.SIGKILL)
    assert attempt_of(folder, leader.id).end is None, "it was at work"
    status = succeeded(smoke, run)
    assert smoke.fingerprint().items() >= undisturbed.fingerprint().items()
    (row,) = (s for s in status["stages"] if s["name"] == stage)
    ends = [(a["state"], a["cause"]) for a in row["attempts"]]
    print(json.dumps({"stage": stage, "ends": ends, "after_s": round(time.time() - killed_at)}))
    assert smoke.wait_gone() == []


def test_a_run_whose_head_is_lost_goes_on_on_a_new_cluster_from_its_bucket(
    cloud: RayHead, s3: dict[str, str], material: Path, tmp_path: Path
) -> None:
    """All of the head dies in the middle of a training; nothing but the bucket is left."""
    words = ["--set", "sweep={}", "--set", f"train.steps={KILLED_STEPS}", "--until", "train"]
    undisturbed = Smoke.create(tmp_path / "u", material)
    assert undisturbed.finish(undisturbed.submit(*words)) == 0
    url = f"s3://{BUCKET}/lost"
    upload(undisturbed, Storage(f"{url}/artifacts"), "train")
    lost = on(cloud, tmp_path / "s", material, store=url)
    run = lost.submit(*words)
    folder = RunFolder(Storage(f"{url}/runs/{run}"))
    train = next(i.id for i in folder.plan().leaders if i.stage == "train")
    await_steps(folder, train, 1)
    for process in jobs_on_head(url):
        process.kill()
    cloud.stop()
    other = RayHead(tmp_path / "other", num_cpus=0, node_types={"gpu": GPU}, idle_min=0.3)
    other.start()
    try:
        smoke, began = on(other, tmp_path / "n", material, store=url), time.time()
        smoke.orchestrator("resume", run)
        succeeded(smoke, run)
    finally:
        other.stop()
    made, artifacts = undisturbed.fingerprint(), Storage(f"{url}/artifacts")
    assert {path: artifacts.digest(path) for path in made} == made
    ends = [(a.end or {}).get("cause") for a in folder.attempts(train)]
    print(json.dumps({"ends": ends, "after_s": round(time.time() - began)}))
    assert smoke.wait_gone() == []


def upload(made: Smoke, artifacts: Storage, *but: str) -> None:
    """Begin with another store's artifacts, but not those of some stages."""
    folder = made.folder / "store" / "artifacts"
    for path in (p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder)
        if name.parts[0] not in but:
            artifacts.create(name.as_posix(), path.read_bytes())


STRUCK = ("--set", "sweep={}", "--set", "train.steps=100000", "--until", "train")
STRUCK += ("--set", "train.checkpoint.every_steps=500")


def at_work(cloud: RayHead, made: Smoke, folder: Path, material: Path) -> tuple[Smoke, str]:
    """A run whose training has made steps on a node of the cloud."""
    smoke = on(cloud, folder, material)
    smoke.take_artifacts(made, "train", "perplexity", "continuations")
    run = smoke.submit(*STRUCK)
    record = RunFolder(Storage(f"{smoke.folder}/store/runs/{run}"))
    await_steps(record, next(i.id for i in record.plan().leaders if i.stage == "train"), 1)
    return smoke, run


def print_cost(told: dict[str, Any]) -> None:
    """For benchmarks/drills.md."""
    figures = {name: round(told[name], 1) for name in ("noticed_s", "recovered_s")}
    print(json.dumps({told["fault"]: {**figures, "steps_lost": told["steps_lost"]}}))


@pytest.mark.parametrize(
    ("fault", "causes"), [("spot", {"preempted"}), ("node", {"worker_lost", "node_lost"})]
)
def test_the_drill_that_takes_a_node_says_what_it_cost(
    fault: str,
    causes: set[str],
    cloud: RayHead,
    calm: tuple[Smoke, str],
    material: Path,
    tmp_path: Path,
) -> None:
    smoke, run = at_work(cloud, calm[0], tmp_path / "s", material)
    told = json.loads(smoke.orchestrator("chaos", run, "--kill", fault, "--json").stdout)
    assert told["cause"] in causes, "Ray may know of its node's end later than of the rank's"
    assert told["steps_lost"] == 0 or fault == "node"
    events = [event["kind"] for event in cloud.node_events()]
    assert events.count("up") == 2, "another has come in its place"
    print_cost(told)
    smoke.orchestrator("cancel", run)
    assert smoke.wait_gone() == []


def test_the_drill_that_kills_the_head_waits_for_the_one_that_comes_back(
    cloud: RayHead, calm: tuple[Smoke, str], material: Path, tmp_path: Path
) -> None:
    """Whoever starts it anew resumes what was on it, as the last line of its start-up does."""
    smoke, run = at_work(cloud, calm[0], tmp_path / "s", material)
    (head,) = cloud.processes
    with ThreadPoolExecutor() as beside:
        drill = beside.submit(smoke.orchestrator, "chaos", run, "--kill", "head", "--json")
        head.wait(60)
        assert smoke.status(run)["state"] == "failed", "nobody supervises it"
        cloud.kill()
        cloud.start()
        resumed = smoke.orchestrator("resume", "--interrupted")
        assert f"run {run}: " in resumed.stderr
        told = json.loads(drill.result().stdout)
    print_cost(told)
    smoke.orchestrator("cancel", run)
    assert smoke.wait_gone() == []


ASK = "import sys, ray; from ray.autoscaler.sdk import request_resources; ray.init(sys.argv[1]); "
ASK += "request_resources(bundles=[{'GPU': 1}])"
RELEASE = (
    "import logging, sys, time; from orchestrator.control.ray.idle_nodes import IdleNodes; "
    "from orchestrator.spec.cluster import NodeType, Ray; logging.basicConfig(); "
    "types = {'gpu': NodeType(mem_gb=1, gpus=1, min_nodes=int(sys.argv[2]))}; "
    "idle = IdleNodes(sys.argv[1], Ray(node_types=types, idle_release_min=0.05), every_s=1); "
    "[(idle(), time.sleep(1)) for _ in range(12)]"
)


def test_a_node_that_was_asked_for_and_forgotten_is_given_back(cloud: RayHead) -> None:
    """Requests outlive who made them; a type's fewest nodes stay."""

    def run(code: str, *words: str) -> str:
        argv = [sys.executable, "-c", code, cloud.address, *words]
        done = subprocess.run(
            argv, env=cloud.env_of_nodes(), capture_output=True, text=True, timeout=120, check=True
        )
        return done.stderr

    run(ASK)
    wait_for(cloud.nodes, "a node")
    time.sleep(60 * cloud.idle_min + 15)  # longer than an idle node has, and its start takes
    assert len(cloud.nodes()) == 1, "it is held by the request"
    assert "given back" not in run(RELEASE, "1")
    assert "a gpu with 1 GPUs has idled for" in run(RELEASE, "0")
    wait_for(lambda: not cloud.nodes(), "its end")
    time.sleep(15)
    assert cloud.nodes() == [], "and none comes in its place"


def test_a_training_goes_on_with_fewer_nodes_and_with_more_again(
    cloud: RayHead, calm: tuple[Smoke, str], material: Path, tmp_path: Path
) -> None:
    """3, 2 and 3 ranks of a global batch of 12: the same samples, and losses within 1e-4."""
    steps, batch = 1000, 12 * 32
    words = ["--set", "sweep={}", "--set", f"train.steps={steps}", "--until", "train"]
    words += ["--set", f"train.global_batch_tokens={batch}"]
    words += ["--set", "train.checkpoint.every_steps=200"]
    fixed = Smoke.create(
        tmp_path / "f", material, cpus=4, resources={"train": {"ranks_per_node": 3}}
    )
    fixed.take_artifacts(calm[0], "train", "perplexity", "continuations")
    assert fixed.finish(fixed.submit(*words)) == 0
    elastic = {"train": {"nodes": {"min": 1, "max": 3}}}
    smoke = on(cloud, tmp_path / "s", material, resources=elastic, retry={"resize_wait_s": 25})
    smoke.take_artifacts(calm[0], "train", "perplexity", "continuations")
    run = smoke.submit(*words)
    folder = RunFolder(Storage(f"{smoke.folder}/store/runs/{run}"))
    train = next(i.id for i in folder.plan().leaders if i.stage == "train")
    await_steps(folder, train, 1)
    full = cloud.cloud / FULL
    full.write_text("InsufficientInstanceCapacity")
    service, node = MetadataService(), cloud.nodes()[0]
    with service.serving() as url:
        service.ends_at = time.time() + 30
        assert cloud.watch_node(node, "--cloud", "aws", "--metadata", url).wait(30) == 0
    await_steps(folder, train, 2)
    full.unlink()
    await_steps(folder, train, 3)
    succeeded(smoke, run)
    attempts = folder.attempts(train)
    placed = [e["nodes"] for a in attempts for e in a.events() if e["kind"] == "placed"]
    assert placed == [3, 2, 3]
    assert [a.nodes[-1][1] for a in attempts] == placed, "what is paid for"
    firsts = [[step["step"] for step in a.steps()] for a in attempts]
    assert [a[0] for a in firsts[1:]] == [a[-1] + 1 for a in firsts[:-1]], "no step twice"
    worst = largest_difference_of_losses(smoke, fixed)
    assert worst < 1e-4
    print(json.dumps({"nodes": placed, "largest_difference_of_losses": worst}))
    assert smoke.wait_gone() == []


def await_steps(folder: RunFolder, instance: str, number: int) -> None:
    """Until an attempt has made some."""

    def found() -> bool:
        there = len(folder.attempts(instance)) >= number
        return there and len(list(attempt_of(folder, instance, number).steps())) > 100

    wait_for(found, f"steps of attempt {number}")


KILLED_STEPS = 400


def is_at_work(folder: RunFolder, instance: str) -> bool:
    """Whether the first attempt has steps behind it, or workers at work."""
    if not folder.attempts(instance):
        return False
    attempt = attempt_of(folder, instance)
    return len(list(attempt.steps())) > 100 or bool(attempt.progress.get("unit") == "shards")


def succeeded(smoke: Smoke, run: str) -> dict[str, Any]:
    """How the run stands, once it has come to a good end."""
    deadline = time.monotonic() + TIMEOUT_S
    while (status := smoke.status(run))["state"] == "running":
        assert time.monotonic() < deadline, status
        time.sleep(2)
    assert status["state"] == "succeeded", status
    return status


def attempt_of(folder: RunFolder, instance: str, number: int = 1) -> AttemptFolder:
    return AttemptFolder.of(folder.storage, instance, number)
