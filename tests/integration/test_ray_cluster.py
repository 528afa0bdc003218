"""A run on a real Ray cluster that is there: nodes come late, the head dies, others are refused."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.backends.base import Job
from orchestrator.backends.ray_jobs import RayJobs
from orchestrator.errors import BackendError
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import JobState
from orchestrator.ledger.storage import Storage
from tests.planted import in_arguments, in_files
from tests.ray_head import RayHead
from tests.ray_provider import REFUSED
from tests.smoke import Smoke
from tests.training import wait_for as wait_until

pytestmark = [pytest.mark.slow, pytest.mark.ray_cluster]
TIMEOUT_S = 300
MADE_HERE = ("codebook", "tokenize", "pack", "train", "perplexity", "continuations")


@pytest.fixture
def head(tmp_path: Path) -> Iterator[RayHead]:
    """One without cores: what takes any waits for a node."""
    head = RayHead(tmp_path / "ray", num_cpus=0)
    head.start()
    yield head
    head.stop()


def on(head: RayHead, folder: Path, material: Path, token: str = "", **cluster: object) -> Smoke:
    """A store whose runs are given to this head."""
    env = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token or head.token,
        "RAY_ADDRESS": head.address,
    }
    ray = {"address": head.url}
    return Smoke.create(folder, material, env, **{"backend": "ray", "ray": ray, **cluster})


def wait_for(smoke: Smoke, run: str, state: str, stage: str = "") -> None:
    """Until the run is in a state, or a stage of it."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        status = smoke.status(run)
        states = {s["name"]: s["state"] for s in status["stages"]} | {"": status["state"]}
        if states[stage] == state:
            return
        assert time.monotonic() < deadline, status
        time.sleep(1)


def test_nodes_come_late_the_head_dies_and_the_bytes_are_the_same(
    head: RayHead, calm: tuple[Smoke, str], material: Path, tmp_path: Path
) -> None:
    smoke = on(head, tmp_path / "s", material)
    smoke.take_artifacts(calm[0], *MADE_HERE)
    run = smoke.submit("--set", "sweep={}", "--until", "pack")
    assert smoke.status(run)["backend"] == "ray"
    wait_for(smoke, run, "running", "codebook")
    head.kill()
    head.start()
    head.add_node(2)
    # Whoever supervised it may have outlived its head, and then gives up, or goes on by itself.
    resumed = smoke.orchestrator("resume", "--interrupted")
    assert f"run {run}: " in resumed.stderr
    if smoke.status(run)["state"] == "failed":
        smoke.orchestrator("resume", "--interrupted")
    wait_for(smoke, run, "succeeded")
    made = smoke.fingerprint()
    assert len(made) > 2
    assert made.items() <= calm[0].fingerprint().items()
    code = list((head.folders[-1]).glob("**/py_modules_files/_ray_pkg_*/"))
    assert len(code) == 2, "both packages came to a node that knew of neither"
    assert smoke.orchestrator("verify", run).returncode == 0
    assert "attempt" in smoke.orchestrator("logs", run).stdout
    assert smoke.wait_gone() == []


def test_a_run_is_cancelled_and_nobody_else_is_let_in(
    head: RayHead, material: Path, tmp_path: Path
) -> None:
    smoke = on(head, tmp_path / "s", material)
    refused = on(head, tmp_path / "w", material, "wrong").orchestrator(
        "submit", "recipes/smoke.yaml", check=False
    )
    assert refused.returncode == 3
    assert "refuses us (403)" in refused.stderr
    run = smoke.submit("--set", "sweep={}", "--until", "corpus")
    assert in_arguments([head.token]) == []
    smoke.orchestrator("cancel", run)
    assert smoke.status(run)["state"] in ("cancelled", "succeeded")
    assert smoke.wait_gone() == []
    _of_the_api(head)
    assert in_files([head.token], tmp_path, *head.written) == []


def test_a_cluster_that_never_gets_its_nodes_says_why(material: Path, tmp_path: Path) -> None:
    """The cloud's own words, in `status` while it waits, and in the error of its deadline."""
    words = "InsufficientInstanceCapacity: no p4d in this zone"
    never = {"resources": {"CPU": 4, "GPU": 1}, "max_workers": 2, "node_config": {REFUSED: words}}
    head = RayHead(tmp_path / "ray", num_cpus=0, node_types={"gpu": never})
    head.start()
    try:
        ray = {"address": head.url, "pending_deadline_min": 0.4}
        smoke = on(head, tmp_path / "s", material, ray=ray)
        run, waits = smoke.submit("--set", "sweep={}", "--until", "encoder"), ""
        deadline = time.monotonic() + TIMEOUT_S
        while (status := smoke.status(run))["state"] == "running":
            waits = next((s["waits"] for s in status["stages"] if s["waits"]), waits)
            assert time.monotonic() < deadline, status
            time.sleep(1)
    finally:
        head.stop()
    assert waits.startswith("1 of its workers: the cloud gives no gpu"), waits
    assert status["state"] == "failed"
    ((attempt,),) = (s["attempts"] for s in status["stages"] if s["state"] == "failed")
    assert (attempt["cause"], attempt["action"]) == ("no_nodes", "stop")
    assert attempt["message"].startswith("targets: no node came in 0.4 min for 1 of its workers: ")
    assert words in attempt["message"]


def test_rank_0_is_on_a_node_that_no_cloud_takes_back(
    head: RayHead, calm: tuple[Smoke, str], material: Path, tmp_path: Path
) -> None:
    """Of two ranks, on three nodes of which the last to come is the only one on demand."""
    types = {name: {"mem_gb": 1, "cpus": 1, "max_nodes": 2} for name in ("spot", "kept")}
    types["spot"]["spot"] = True
    for name in ("spot", "spot", "kept"):
        head.add_node(1, name)
    ray = {"address": head.url, "node_types": types}
    smoke = on(head, tmp_path / "s", material, ray=ray, resources={"train": {"nodes": 2}})
    smoke.take_artifacts(calm[0], "train", "perplexity", "continuations")
    run = smoke.submit(*("--set", "sweep={}", "--set", "train.steps=100000", "--until", "train"))
    folder = RunFolder(Storage(f"{smoke.folder}/store/runs/{run}"))
    train = next(i for i in folder.plan().leaders if i.stage == "train")
    wait_until(lambda: folder.attempts(train.id), "its attempt")
    attempt = folder.attempts(train.id)[0]
    wait_until(lambda: list(attempt.steps()), "its first step")
    beats = [attempt.storage.read_json(f"beats/rank-{rank:05d}.json") for rank in (0, 1)]
    ranks = [psutil.Process(beat["process"]["pid"]) for beat in beats]
    assert [r.environ()["RAY_NODE_TYPE_NAME"] for r in ranks] == ["kept", "spot"]
    smoke.orchestrator("cancel", run)
    assert smoke.wait_gone() == []


def _of_the_api(head: RayHead) -> None:
    """What the real one says of jobs that end in each way, and to those without a token."""
    jobs = RayJobs(head.url, head.token)
    job = Job(name="n", argv=("sh", "-c", "echo said; exit 3"), log=Path("l"), tag="n-1")
    ref = jobs.submit(job)
    assert jobs.submit(job).id == ref.id
    deadline = time.monotonic() + TIMEOUT_S
    while not (status := jobs.poll([ref])[ref]).state.is_final:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert (status.state, status.exit_code) == (JobState.FAILED, 3)
    assert "said" in jobs.log(ref)
    with pytest.raises(BackendError, match=r"refuses us \(401\)"):
        RayJobs(head.url).poll([ref])
