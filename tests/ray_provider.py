"""A cloud for Ray's own autoscaler: each instance is a real ``ray start`` on this machine.

Ray's monitor, a process of the head, imports it. All that it knows lies in files of one folder, so
that a monitor that is started again finds its nodes. A type whose ``node_config`` says ``refused``
cannot be had, for that reason.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

HEAD_ID, HEAD_TYPE = "head", "head"
EVENTS = "events.jsonl"
REFUSED = "refused"
FULL = "full.txt"
"""While it is in the cloud's folder nothing can be had, for the reason that it holds."""
_GRACE_S = 10.0


def free_ports_words(temporary: str) -> list[str]:
    """What lets several nodes share one machine: no port and no folder of another's."""
    words = ["--min-worker-port", "0", "--max-worker-port", "0"]
    return [*words, "--dashboard-agent-listen-port", "0", "--temp-dir", temporary]


class ProcessProvider(NodeProvider):  # type: ignore[misc]  # Ray has no types
    """``provider``: ``folder``, ``gcs_address`` and ``temporary`` (a short prefix of folders)."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._folder = Path(provider_config["folder"])
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._children: list[subprocess.Popen[bytes]] = []

    # What Ray asks.

    def non_terminated_nodes(self, tag_filters: Mapping[str, str]) -> list[str]:
        """Ids of the instances with these tags."""
        tags = {HEAD_ID: _head_tags(), **{i: n["tags"] for i, n in self._alive().items()}}
        return [i for i, own in tags.items() if tag_filters.items() <= own.items()]

    def is_running(self, node_id: str) -> bool:
        """Whether it runs."""
        return node_id == HEAD_ID or node_id in self._alive()

    def is_terminated(self, node_id: str) -> bool:
        """Whether it has gone."""
        return not self.is_running(node_id)

    def node_tags(self, node_id: str) -> dict[str, str]:
        """The tags of one."""
        if node_id == HEAD_ID:
            return _head_tags()
        return dict(self._known().get(node_id, {"tags": {}})["tags"])

    def set_node_tags(self, node_id: str, tags: Mapping[str, str]) -> None:
        """Change tags of one."""
        with self._lock:
            node = self._known()[node_id]
            node["tags"].update(tags)
            self._write(node)

    def internal_ip(self, node_id: str) -> str:
        """Its address; all of them are this machine's."""
        return node_id

    def external_ip(self, node_id: str) -> str:
        """Its address."""
        return node_id

    # What Ray orders.

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str] | None,
    ) -> None:
        """Start nodes. Raises RuntimeError for a type that cannot be had."""
        if reason := node_config.get(REFUSED) or self._refusal():
            raise RuntimeError(reason)
        for _ in range(count):
            self._create(tags, resources, labels or {})

    def create_node(self, *_: object) -> None:
        """The older order, which names no resources."""
        raise NotImplementedError

    def terminate_node(self, node_id: str) -> None:
        """End one, as a cloud does: a warning first."""
        with self._lock:
            node = self._known().get(node_id)
            if node is None:
                return
            self._path(node_id).unlink(missing_ok=True)
        self._note("down", node)
        threading.Thread(target=_end, args=(node, _GRACE_S), daemon=True).start()

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Nothing to add."""
        return cluster_config

    def _create(
        self, tags: Mapping[str, str], resources: Mapping[str, float], labels: Mapping[str, str]
    ) -> None:
        node_id = uuid.uuid4().hex
        node_type = tags[TAG_RAY_USER_NODE_TYPE]
        others = {k: v for k, v in resources.items() if k not in ("CPU", "GPU", "memory")}
        others.pop("object_store_memory", None)
        argv = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--address"]
        argv += [self.provider_config["gcs_address"]]
        argv += ["--num-cpus", f"{resources.get('CPU', 0):g}"]
        argv += ["--num-gpus", f"{resources.get('GPU', 0):g}", "--resources", json.dumps(others)]
        argv += ["--object-store-memory", "80000000"]
        argv += free_ports_words(f"{self.provider_config['temporary']}{node_id[:6]}")
        if labels:
            argv += ["--labels", ",".join(f"{k}={v}" for k, v in labels.items())]
        own = {"RAY_CLOUD_INSTANCE_ID": node_id, "RAY_NODE_TYPE_NAME": node_type}
        without_path = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        with (self._folder / f"{node_id[:6]}.log").open("wb") as output:
            child = subprocess.Popen(
                [*self.provider_config.get("before", []), *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**without_path, **own},
                start_new_session=True,
            )
        self._children.append(child)
        started = psutil.Process(child.pid).create_time()
        tags = {**tags, TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE}
        node = {"id": node_id, "pid": child.pid, "started": started, "tags": tags}
        self._write(node)
        self._note("up", node)

    def _refusal(self) -> str:
        """Why nothing can be had just now; empty where it can."""
        path = self._folder / FULL
        return path.read_text() if path.exists() else ""

    # What it knows.

    def _known(self) -> dict[str, dict[str, Any]]:
        nodes = {}
        for path in self._folder.glob("*.json"):
            with suppress(OSError):
                nodes[path.stem] = json.loads(path.read_text())
        return nodes

    def _alive(self) -> dict[str, dict[str, Any]]:
        with self._lock:
            for child in self._children:
                child.poll()
            nodes = self._known()
            for node_id in [i for i, node in nodes.items() if not _runs(node)]:
                node = nodes.pop(node_id)
                self._note("gone", node)
                _end(node)
                self._path(node_id).unlink(missing_ok=True)
            return nodes

    def _path(self, node_id: str) -> Path:
        return self._folder / f"{node_id}.json"

    def _write(self, node: Mapping[str, Any]) -> None:
        path = self._path(node["id"])
        path.with_suffix(".new").write_text(json.dumps(node))
        path.with_suffix(".new").rename(path)

    def _note(self, kind: str, node: Mapping[str, Any]) -> None:
        line = {"at": time.time(), "kind": kind, "id": node["id"], "pid": node["pid"]}
        line["type"] = node["tags"][TAG_RAY_USER_NODE_TYPE]
        with (self._folder / EVENTS).open("a") as file:
            file.write(f"{json.dumps(line)}\n")


def _head_tags() -> dict[str, str]:
    return {
        TAG_RAY_NODE_KIND: NODE_KIND_HEAD,
        TAG_RAY_USER_NODE_TYPE: HEAD_TYPE,
        TAG_RAY_NODE_NAME: HEAD_ID,
        TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
    }


def _runs(node: Mapping[str, Any]) -> bool:
    try:
        process = psutil.Process(node["pid"])
        is_it = abs(process.create_time() - node["started"]) < 1
        return is_it and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end(node: Mapping[str, Any], grace_s: float = 0.0) -> None:
    """End the whole group of a node: its daemons and its workers."""
    with suppress(ProcessLookupError):
        if grace_s:
            os.killpg(node["pid"], signal.SIGTERM)
            deadline = time.monotonic() + grace_s
            while _runs(node) and time.monotonic() < deadline:
                time.sleep(0.1)
        os.killpg(node["pid"], signal.SIGKILL)
