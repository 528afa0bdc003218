"""A node that Ray is told to give up: its training saves, and the attempt ends as preempted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jobs import train
from jobs.attempt import StopRequestedError
from jobs.training.heartbeat import LIVE
from orchestrator.backends.ray_session import RaySession
from orchestrator.ledger import checkpoints
from tests.integration.test_train import World, make_world
from tests.training import wait_for

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent
CODE_ENV = {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}


def test_a_drained_node_saves_before_it_goes(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    session = RaySession(run=str(tmp_path), num_cpus=3, log=tmp_path / "ray.log", code_env=CODE_ENV)
    try:
        session.wait_ready()
        # Ray reads its token once a process, so the driver needs one of its own.
        code = f"from {__name__} import drive; drive({str(tmp_path)!r})"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **CODE_ENV, **session.env},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        session.stop()
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "runs" / "train-5" / "attempts" / "0001"
    assert "preemption_notice" in (folder / "events-0001.jsonl").read_text()
    said = json.loads((folder / LIVE).read_text())
    assert said["stopped"]
    assert checkpoints.committed(world.artifact("train", "5").storage)[-1].step == said["step"]


def drive(root: str) -> None:
    """The driver: trains until its node is drained after the second checkpoint."""
    world = World(Path(root), Path(root) / "lm")
    attempt = world.attempt("train", name="5", launcher="ray_train", steps=100_000)
    attempt.ray_address = os.environ["RAY_ADDRESS"]

    def when_saved() -> None:
        wait_for(lambda: len(checkpoints.committed(attempt.out)) > 1, "a checkpoint")
        drain(attempt.ray_address)

    threading.Thread(target=when_saved, daemon=True).start()
    with pytest.raises(StopRequestedError):
        train.work(attempt)
    attempt.flush()


def drain(address: str) -> None:
    """What a cloud's autoscaler does when a spot node gets its notice."""
    import ray

    (node,) = ray.nodes()
    words = ["--address", address, "--node-id", node["NodeID"]]
    words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    words += ["--deadline-remaining-seconds", "60"]
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "drain-node", *words], check=True)
