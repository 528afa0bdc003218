"""A cloud of one machine, this one, for the real ``ray up``: the head is a process, no node comes.

Ray's own commands import it. What they would say over ssh is done here, but for ``ray stop``, which
would end every Ray of this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.autoscaler.command_runner import CommandRunnerInterface
from ray.autoscaler.node_provider import NodeProvider

from tests.jobs_api import RELAY

HEAD = "head-1"
NO_CAPACITY = "InsufficientInstanceCapacity: none of that kind here"
PID = "head.pid"
_GRACE_S = 20.0


def launcher(folder: Path, start: str, dashboard: int) -> dict[str, object]:
    """A launcher file for ``ray up`` whose head is what a shell line starts."""
    resources = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "tried",
        "max_workers": 1,
        "provider": {
            "type": "external",
            "module": "tests.local_machine.LocalMachine",
            "folder": str(folder),
            "dashboard_port": dashboard,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "foreground_node_launch": True,
        },
        "head_node_type": "head",
        "available_node_types": {
            "head": resources,
            "gpu": {"resources": {"GPU": 1}, "node_config": {}, "min_workers": 1, "max_workers": 1},
        },
        "file_mounts": {f"{folder}/copied": "mine.yaml"},
        "head_start_ray_commands": [start],
        "worker_start_ray_commands": [],
        "auth": {},
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "initialization_commands": [],
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "idle_timeout_minutes": 1,
        "upscaling_speed": 1,
    }


class LocalMachine(NodeProvider):  # type: ignore[misc]  # Ray has no types
    """``provider``: ``folder`` and ``dashboard_port``. All that it knows lies in that folder."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._folder = Path(provider_config["folder"])
        self._lock = threading.RLock()

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """The head, where it is and has these tags."""
        tags = self._tags()
        return [HEAD] if tags and tag_filters.items() <= tags.items() else []

    def is_running(self, node_id: str) -> bool:
        """Whether it runs."""
        return node_id == HEAD and bool(self._tags())

    def is_terminated(self, node_id: str) -> bool:
        """Whether it has gone."""
        return not self.is_running(node_id)

    def node_tags(self, node_id: str) -> dict[str, str]:
        """Its tags."""
        return self._tags() if node_id == HEAD else {}

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        """Change its tags."""
        with self._lock:
            if node_id == HEAD:
                self._write({**self._tags(), **tags})

    def internal_ip(self, node_id: str) -> str:  # noqa: ARG002 (all are here)
        """Its address."""
        return "127.0.0.1"

    external_ip = internal_ip

    def create_node(self, _: dict[str, Any], tags: dict[str, str], count: int) -> None:
        """Start the head; of anything else there is none."""
        if tags.get("ray-node-type") != "head" or count != 1:
            raise RuntimeError(NO_CAPACITY)
        self._write(tags)

    def create_node_with_resources_and_labels(self, *_: object) -> None:
        """What the autoscaler orders does not come."""
        raise RuntimeError(NO_CAPACITY)

    def terminate_node(self, node_id: str) -> None:
        """End the head, and all that it has started."""
        (self._folder / "tags.json").unlink(missing_ok=True)
        if node_id != HEAD or not (self._folder / PID).exists():
            return
        pid, deadline = int((self._folder / PID).read_text()), time.monotonic() + _GRACE_S
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGTERM)
            while time.monotonic() < deadline:
                os.killpg(pid, 0)
                time.sleep(0.1)
            os.killpg(pid, signal.SIGKILL)

    def get_command_runner(self, *_: object, **__: object) -> Runner:
        """What does here what would be said there."""
        return Runner(self.provider_config["dashboard_port"])

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Nothing to add."""
        return cluster_config

    def _tags(self) -> dict[str, str]:
        try:
            found: dict[str, str] = json.loads((self._folder / "tags.json").read_text())
        except OSError:
            return {}
        return found

    def _write(self, tags: dict[str, str]) -> None:
        new = self._folder / f"tags.{os.getpid()}.new"
        new.write_text(json.dumps(tags))
        new.rename(self._folder / "tags.json")


class Runner(CommandRunnerInterface):  # type: ignore[misc]  # as above
    """Commands of this machine in place of ssh and rsync."""

    def __init__(self, dashboard_port: int) -> None:
        self._dashboard_port = dashboard_port

    def run(
        self,
        cmd: str | None = None,
        timeout: int = 120,
        exit_on_fail: bool = False,
        port_forward: list[tuple[int, int]] | None = None,
        with_output: bool = False,  # noqa: ARG002 (nobody asks for it)
        environment_variables: dict[str, object] | None = None,
        **_: object,
    ) -> str:
        """Carry a command out, or be the tunnel until somebody ends it."""
        if port_forward:
            ((near, _far),) = port_forward
            words = [sys.executable, "-c", RELAY, str(near), str(self._dashboard_port)]
            subprocess.run(words, check=True)
        elif cmd and "ray stop" not in cmd:
            own = {
                k: str(v)
                for k, v in (environment_variables or {}).items()
                if k != "RAY_OVERRIDE_RESOURCES"
            }
            subprocess.run(
                ["bash", "-c", cmd], check=exit_on_fail, timeout=timeout, env={**os.environ, **own}
            )
        return ""

    def run_rsync_up(self, source: str, target: str, options: object = None) -> None:  # noqa: ARG002
        """Copy a file."""
        Path(target).expanduser().parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, Path(target).expanduser())

    def run_rsync_down(self, source: str, target: str, options: object = None) -> None:
        """Copy a file."""
        self.run_rsync_up(source, target, options)

    def remote_shell_command_str(self) -> str:
        """Nothing leads there but this."""
        return "sh"

    def run_init(self, **_: object) -> None:
        """Nothing to prepare."""
