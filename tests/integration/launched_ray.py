"""A Ray cluster by the real ``ray up`` and ``ray down``, with Ray's own autoscaler on its head."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from jobs.training.rank import free_port
from tests.local_machine import NO_CAPACITY, PID, LocalMachine, launcher
from tests.planted import in_arguments, in_files
from tests.unit.source import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.ray_cluster]
TIMEOUT_S = 60


def launcher_file(folder: Path, temporary: str, dashboard: int) -> dict[str, object]:
    ports = (
        f"--port={free_port()} --dashboard-port={dashboard} --ray-client-server-port={free_port()}"
    )
    apart = f"--temp-dir={temporary} --min-worker-port=0 --max-worker-port=0"
    start = (
        f"setsid {sys.executable} -m ray.scripts.scripts start --head --block --num-cpus=0 "
        f"--num-gpus=0 --node-ip-address=127.0.0.1 --dashboard-host=127.0.0.1 {ports} {apart} "
        f"--dashboard-agent-listen-port={free_port()} --object-store-memory=100000000 "
        "--autoscaling-config=~/ray_bootstrap_config.yaml "
        f"> {folder}/head.log 2>&1 < /dev/null & echo $! > {folder}/{PID}"
    )
    return launcher(folder, start, dashboard)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    temporary = tempfile.mkdtemp(prefix="lr-", dir="/tmp")
    (tmp_path / "launchers").mkdir()
    (tmp_path / "launchers/here.yaml").write_text(
        yaml.safe_dump(launcher_file(tmp_path, temporary, free_port()))
    )
    (tmp_path / "launchers/mine.yaml").touch()
    (tmp_path / "store").mkdir()
    (tmp_path / "temporary").write_text(temporary)
    (tmp_path / "ray.yaml").write_text(
        "backend: ray\nstore: store\nray: {launcher: here, node_types: {head: {mem_gb: 1, "
        "min_nodes: 1, price_hour: 2}, gpu: {mem_gb: 1}}}\n"
        f"environment: {{venv: {sys.prefix}}}\n"
    )
    yield tmp_path
    LocalMachine({"folder": str(tmp_path)}, "tried").terminate_node("head-1")
    shutil.rmtree(temporary, ignore_errors=True)


def test_up_status_down(site: Path) -> None:
    env = {
        **os.environ,
        "HOME": str(site),
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": (token := secrets.token_hex(16)),
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "AUTOSCALER_METRIC_PORT": str(free_port()),
        "RAY_USAGE_STATS_ENABLED": "0",
        "TMPDIR": str(site),
    }
    env.pop("RAY_ADDRESS", None)

    def cluster(act: str, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "orchestrator.cli.main", "cluster", act, "ray.yaml", *words]
        return subprocess.run(argv, cwd=site, env=env, capture_output=True, text=True, check=False)

    up = cluster("up", "--yes")
    assert up.returncode == 0, up.stderr
    assert "ray.yaml: 2.00 USD an hour without work, at most 2.00 (1 head); no price" in up.stderr
    assert (site / "copied").exists(), "paths of a launcher are relative to its folder"
    deadline = time.monotonic() + TIMEOUT_S
    while NO_CAPACITY not in (status := cluster("status")).stdout:
        assert time.monotonic() < deadline, status
    rows = [line.split() for line in status.stdout.splitlines()]
    assert ["head", "1", "0", "1", "2.00", "USD"] in rows
    assert any(row[:2] == ["gpu", "0"] for row in rows)
    assert "live runs: none" in status.stdout
    temporary = site / "temporary"
    assert in_arguments([token]) == []
    assert in_files([token], site, Path(temporary.read_text())) == []
    head = psutil.Process(int((site / PID).read_text()))
    down = cluster("down")
    assert down.returncode == 0, down.stderr
    assert not head.is_running()
    gone = cluster("status")
    assert (gone.returncode, gone.stdout) == (3, "live runs: none\n")
    assert gone.stderr.startswith("ray.launcher: ray: opens no way to the cluster")
    said = "".join(f"{r.stdout}{r.stderr}" for r in (up, status, down, gone))
    assert "Traceback" not in said
    assert token not in said
    assert in_files([token], site, Path(temporary.read_text())) == []
