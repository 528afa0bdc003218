"""A Ray cluster of processes of this machine, as its owner starts it: a head with a dashboard.

It asks for a token, has its own ports and folder, and knows nothing of runs.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from jobs.training.rank import free_port
from orchestrator.backends.ray_jobs import RayJobs
from orchestrator.errors import BackendError

UP_TIMEOUT_S = 120.0
MEMORY_BYTES = 200_000_000


@dataclass
class RayHead:
    """One cluster; a head that is started again is at the same address, and remembers nothing."""

    folder: Path
    num_cpus: int = 2
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    port: int = field(default_factory=free_port)
    dashboard_port: int = field(default_factory=free_port)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    """Of each node that was started, in order."""

    @property
    def url(self) -> str:
        """Of its dashboard."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def address(self) -> str:
        """Of Ray itself."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the head, and return once its Jobs API answers."""
        words = ["--head", "--node-ip-address", "127.0.0.1", "--port", str(self.port)]
        words += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(self.dashboard_port)]
        words += ["--ray-client-server-port", str(free_port())]
        self._ray(*words, num_cpus=self.num_cpus)
        jobs, deadline = RayJobs(self.url, self.token), time.monotonic() + UP_TIMEOUT_S
        while not _answers(jobs):
            assert time.monotonic() < deadline, f"{self.folder}: no head"
            time.sleep(0.5)

    def add_node(self, num_cpus: int) -> None:
        """Start a node of it, which is told of the cluster and of nothing else."""
        self._ray("--address", self.address, num_cpus=num_cpus)

    def kill(self) -> None:
        """SIGKILL to everything that Ray has started, as the end of a machine is."""
        left = []
        for process in self.processes:
            with_children = [psutil.Process(process.pid)] if process.poll() is None else []
            left += [c for p in with_children for c in (p, *p.children(recursive=True))]
        ours = [p for p in left if _is_ray(p)]
        for process in ours:
            process.kill()
        psutil.wait_procs(ours, timeout=20)
        for started in self.processes:
            started.wait()
        self.processes.clear()

    def stop(self) -> None:
        """End it, and remove its folders."""
        for started in self.processes:
            started.send_signal(signal.SIGTERM)
        for started in self.processes:
            try:
                started.wait(20)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()
        self.processes.clear()
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _ray(self, *words: str, num_cpus: int) -> None:
        # Unix socket paths are limited to 107 bytes, and each node on a machine needs its own.
        temporary = Path(tempfile.mkdtemp(prefix="rh-", dir="/tmp"))
        self.folders.append(temporary)
        argv = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *words]
        argv += ["--num-cpus", str(num_cpus), "--object-store-memory", str(MEMORY_BYTES)]
        argv += ["--min-worker-port", "0", "--max-worker-port", "0"]
        argv += ["--dashboard-agent-listen-port", str(free_port())]
        argv += ["--temp-dir", str(temporary)]
        env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ADDRESS": "",
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"ray-{len(self.folders)}.log"
        with log.open("wb") as output:
            started = subprocess.Popen(
                argv, stdout=output, stderr=subprocess.STDOUT, env=env, cwd=self.folder
            )
        self.processes.append(started)


def _answers(jobs: RayJobs) -> bool:
    try:
        return bool(jobs.version())
    except BackendError:
        return False


def _is_ray(process: psutil.Process) -> bool:
    """A daemon or worker of Ray, and no job that it has started."""
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return "orchestrator" not in words and "-m jobs." not in words
