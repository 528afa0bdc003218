"""The real ``ray up``, ``ray dashboard`` and ``ray down`` of a launcher; its head is played."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from jobs.training.rank import free_port
from tests.local_machine import PID, LocalMachine, launcher
from tests.unit.source import ROOT

pytestmark = pytest.mark.slow


HEAD = """
import json, signal, sys
from tests.jobs_api import playing

counts = [
    {"type": "head", "alive": 1, "problems": []},
    {"type": "gpu", "alive": 0, "problems": ["no capacity"]},
]
with playing("t0k3n", int(sys.argv[1])) as head:
    told = json.dumps({"counts": counts, "there": []})
    head.on_submit = lambda job: job.update(status="SUCCEEDED", logs=told)
    signal.pause()
"""


def launcher_file(folder: Path, dashboard: int) -> dict[str, object]:
    """One for ``ray up``, whose head is a process that plays the Jobs API."""
    (folder / "head.py").write_text(HEAD)
    start = (
        f"setsid {sys.executable} {folder}/head.py {dashboard} "
        f"> {folder}/head.log 2>&1 < /dev/null & echo $! > {folder}/{PID}"
    )
    return launcher(folder, start, dashboard)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "launchers").mkdir()
    described = launcher_file(tmp_path, free_port())
    (tmp_path / "launchers/here.yaml").write_text(yaml.safe_dump(described))
    (tmp_path / "launchers/mine.yaml").touch()
    (tmp_path / "store").mkdir()
    (tmp_path / "ray.yaml").write_text(
        "backend: ray\nstore: store\nray: {launcher: here, node_types: {head: {mem_gb: 1, "
        "min_nodes: 1, price_hour: 2}, gpu: {mem_gb: 1}}}\n"
    )
    yield tmp_path
    LocalMachine({"folder": str(tmp_path)}, "tried").terminate_node("head-1")


def orchestrator(site: Path, env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "orchestrator.cli.main", "cluster", *words]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_"))}
    own = {"HOME": str(site), "TMPDIR": str(site), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        argv, cwd=site, env={**kept, **own, **env}, capture_output=True, text=True, check=False
    )


def test_up_status_down(site: Path) -> None:
    def cluster(*words: str) -> subprocess.CompletedProcess[str]:
        return orchestrator(site, {"RAY_AUTH_TOKEN": "t0k3n"}, *words)

    up = cluster("up", "ray.yaml", "--yes")
    assert up.returncode == 0, up.stderr
    assert "ray.yaml: 2.00 USD an hour without work, at most 2.00 (1 head); no price" in up.stderr
    assert (site / "copied").exists(), "paths of a launcher are relative to its folder"
    assert (site / "ray_bootstrap_config.yaml").exists()
    head = psutil.Process(int((site / PID).read_text()))
    status = cluster("status", "ray.yaml")
    assert status.returncode == 0, status.stderr
    rows = [line.split() for line in status.stdout.splitlines()]
    assert ["head", "1", "0", "1", "2.00", "USD"] in rows
    assert "gpu: did not come: no capacity\nlive runs: none\n" in status.stdout
    down = cluster("down", "ray.yaml")
    assert down.returncode == 0, down.stderr
    assert not head.is_running()
    gone = cluster("status", "ray.yaml")
    assert (gone.returncode, gone.stdout) == (3, "live runs: none\n")
    assert gone.stderr.startswith("ray.launcher: ray: opens no way to the cluster (The exception")
    said = "".join(f"{r.stdout}{r.stderr}" for r in (up, status, down, gone))
    assert "Traceback" not in said
    assert "t0k3n" not in said


def test_a_cloud_without_credentials_is_one_line(site: Path) -> None:
    found = yaml.safe_load((ROOT / "cluster_configs/launchers/aws.yaml").read_text())
    found.pop("file_mounts")
    (site / "launchers/here.yaml").write_text(yaml.safe_dump(found))
    (site / "ray.yaml").write_text("backend: ray\nstore: store\nray: {launcher: here}\n")
    words = ("up", "ray.yaml", "--force", "--yes")
    ended = orchestrator(site, {"AWS_EC2_METADATA_DISABLED": "true"}, *words)
    assert ended.returncode == 3
    assert "Traceback" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("ray up: ")
    assert "credentials" in last
