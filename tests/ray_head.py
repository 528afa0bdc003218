"""A Ray cluster of processes of this machine, as its owner starts it: a head with a dashboard.

It asks for a token, has its own ports and folder, and knows nothing of runs. Where it is given node
types, Ray's own autoscaler starts and ends nodes (`tests.ray_provider`).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from jobs.training.rank import free_port
from orchestrator.backends.ray_jobs import RayJobs
from orchestrator.errors import BackendError
from tests.ray_provider import EVENTS, HEAD_ID, HEAD_TYPE, ProcessProvider, free_ports_words

ROOT = Path(__file__).parent.parent
UP_TIMEOUT_S = 120.0
MEMORY_BYTES = 200_000_000
SPOT_WATCHER = "orchestrator.control.ray.spot_watcher"


@dataclass
class RayHead:
    """One cluster; a head that is started again is at the same address, and remembers nothing."""

    folder: Path
    num_cpus: int = 2
    node_types: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """As a launcher file has them; the autoscaler has nothing to do without any."""
    idle_min: float = 0.1
    """How long a node of the autoscaler may have nothing to do, in minutes."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to that of all nodes."""
    before_node: tuple[str, ...] = ()
    """What the command of a node that the autoscaler starts begins with."""
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
        if self.node_types:
            words += ["--autoscaling-config", str(self._autoscaling())]
        self._ray(*words, num_cpus=self.num_cpus)
        jobs, deadline = RayJobs(self.url, self.token), time.monotonic() + UP_TIMEOUT_S
        while not _answers(jobs):
            assert time.monotonic() < deadline, f"{self.folder}: no head"
            time.sleep(0.5)

    def add_node(self, num_cpus: int, node_type: str = "") -> None:
        """Start a node of it, which is told of the cluster, of its type, and of nothing else."""
        env = {"RAY_NODE_TYPE_NAME": node_type} if node_type else {}
        self._ray("--address", self.address, num_cpus=num_cpus, env=env)

    def kill(self) -> None:
        """SIGKILL to everything that Ray has started, as the end of a machine is."""
        left = []
        for process in self.processes:
            with_children = [psutil.Process(process.pid)] if process.poll() is None else []
            left += [c for p in with_children for c in (p, *p.children(recursive=True))]
        ours = [p for p in left if _is_ray(p)]
        for process in ours:
            with suppress(psutil.NoSuchProcess):  # it has ended with one that was killed before it
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
        for node in self.nodes():  # the monitor that would have ended them is gone
            with suppress(ProcessLookupError):
                os.killpg(node["pid"], signal.SIGKILL)
        for folder in self.written[1:]:
            shutil.rmtree(folder, ignore_errors=True)

    def _ray(self, *words: str, num_cpus: int, env: Mapping[str, str] | None = None) -> None:
        # Unix socket paths are limited to 107 bytes, and each node on a machine needs its own.
        temporary = Path(tempfile.mkdtemp(prefix="rh-", dir="/tmp"))
        self.folders.append(temporary)
        argv = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *words]
        argv += ["--num-cpus", str(num_cpus), "--object-store-memory", str(MEMORY_BYTES)]
        argv += free_ports_words(str(temporary))
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"ray-{len(self.folders)}.log"
        with log.open("wb") as output:
            started = subprocess.Popen(
                argv,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**self.env_of_nodes(), **(env or {})},
                cwd=self.folder,
            )
        self.processes.append(started)

    def _autoscaling(self) -> Path:
        """The file that the head's monitor reads."""
        self.folder.mkdir(parents=True, exist_ok=True)
        most = sum(t["max_workers"] for t in self.node_types.values())
        provider = {
            "type": "external",
            "module": f"{ProcessProvider.__module__}.{ProcessProvider.__name__}",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "foreground_node_launch": True,
            "gcs_address": self.address,
            "folder": str(self.cloud),
            "temporary": str(self.temporary),
            "before": list(self.before_node),
        }
        lists = (
            *("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands"),
            *("setup_commands", "head_setup_commands", "worker_setup_commands"),
            *("head_start_ray_commands", "worker_start_ray_commands"),
        )
        config = {
            "cluster_name": "test",
            "max_workers": most,
            "idle_timeout_minutes": self.idle_min,
            "upscaling_speed": 1000.0,
            "provider": provider,
            "auth": {},
            "docker": {},
            "available_node_types": {
                HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                **{n: {"node_config": {}, **t} for n, t in self.node_types.items()},
            },
            "head_node_type": HEAD_TYPE,
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            **{name: [] for name in lists},
        }
        path = self.folder / "autoscaling.json"
        path.write_text(json.dumps(config))
        return path

    @property
    def cloud(self) -> Path:
        """What the cloud of its autoscaler remembers."""
        return self.folder / "cloud"

    @property
    def temporary(self) -> Path:
        """What the folders of nodes that the autoscaler starts begin with."""
        return Path(f"/tmp/rn-{self.port}-")

    @property
    def written(self) -> list[Path]:
        """All folders that its nodes have written to."""
        of_nodes = self.temporary.parent.glob(f"{self.temporary.name}*")
        return [self.folder, *self.folders, *of_nodes]

    def node_events(self) -> list[dict[str, Any]]:
        """What happened to nodes of the autoscaler, in order: ``up``, ``down`` or ``gone``."""
        path = self.cloud / EVENTS
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def nodes(self) -> list[dict[str, Any]]:
        """What the cloud knows of each node that it has: ``id``, ``pid``."""
        found = []
        for path in self.cloud.glob("*.json"):
            with suppress(FileNotFoundError):  # it went in between
                found.append(json.loads(path.read_text()))
        return found

    def watch_node(self, node: Mapping[str, Any], *words: str) -> subprocess.Popen[bytes]:
        """Start the watcher of one of these nodes, as a launcher file does beside it."""
        raylets = [p for p in psutil.Process(node["pid"]).children() if p.name() == "raylet"]
        (node_id,) = (w.split("=")[1] for p in raylets for w in p.cmdline() if "--node_id=" in w)
        argv = [sys.executable, "-m", SPOT_WATCHER, "--node-id", node_id, "--address", self.address]
        with (self.folder / "watcher.log").open("ab") as output:
            return subprocess.Popen(
                [*argv, *words], env=self.env_of_nodes(), stdout=output, stderr=output
            )

    def env_of_nodes(self) -> dict[str, str]:
        """What its processes are started with, and whoever joins it."""
        return {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ADDRESS": "",
            **(self._autoscalers_env() if self.node_types else {}),
            **self.env,
        }

    def _autoscalers_env(self) -> dict[str, str]:
        path = os.environ.get("PYTHONPATH", "")
        return {
            "PYTHONPATH": f"{ROOT}{os.pathsep if path else ''}{path}",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_NODE_TYPE_NAME": HEAD_TYPE,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "AUTOSCALER_METRIC_PORT": str(free_port()),
        }


def jobs_on_head(store_url: str) -> list[psutil.Process]:
    """Supervisors and drivers of a store's runs on this machine, by what they were called with."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if store_url in words and "--run" in words:
            found.append(process)
    return found


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
