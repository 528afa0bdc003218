"""The nodes of a Ray cluster, as its autoscaler counts them and as its head knows them.

A command on the head asks it: the dashboard tells of no launch that failed.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.backends.base import Job
from orchestrator.backends.ray_jobs import RayJobs
from orchestrator.control.executor import NodeCount
from orchestrator.control.job import venv_python, with_setup
from orchestrator.control.ray.gcs import Gcs, Node
from orchestrator.control.supervised import last_line
from orchestrator.errors import BackendError
from orchestrator.ledger.refusals import MONITOR_LOG, refusals
from orchestrator.spec.cluster import Cluster

MODULE = "orchestrator.control.ray.nodes"
TIMEOUT_S = 60.0
_LOOK_EVERY_S = 0.3
_NO_TYPE = "of no type"


class Nodes(NamedTuple):
    """What a head tells of them."""

    counts: tuple[NodeCount, ...]
    """How many there are of each type, and how many do not come."""
    there: tuple[Node, ...]


def nodes_of(jobs: RayJobs, cluster: Cluster, *, timeout_s: float = TIMEOUT_S) -> Nodes:
    """Those of a cluster. Raises BackendError."""
    python = venv_python(cluster.environment) or "python"
    job = Job(
        name="nodes",
        argv=with_setup(cluster.environment, (python, "-m", MODULE)),
        log=Path("of the head"),
        tag=f"nodes-{uuid.uuid4().hex[:12]}",
    )
    ref, deadline = jobs.submit(job), time.monotonic() + timeout_s
    while not (status := jobs.poll([ref])[ref]).state.is_final:
        if time.monotonic() > deadline:
            jobs.cancel([ref])
            raise BackendError(f"ray: the head does not tell its nodes within {timeout_s:g} s")
        time.sleep(_LOOK_EVERY_S)
    said = last_line(jobs.log(ref))
    jobs.forget(ref)
    try:
        told = json.loads(said)
        counts = (NodeCount(**{**c, "problems": tuple(c["problems"])}) for c in told["counts"])
        return Nodes(tuple(counts), tuple(Node(**node) for node in told["there"]))
    except (ValueError, TypeError, KeyError):
        raise BackendError(
            f"ray: the head does not tell its nodes ({said or status.detail}); install this "
            "version of orchestrator there"
        ) from None


def counted(status: Any, refused: Mapping[str, str]) -> list[NodeCount]:
    """The counts of a ``ray.autoscaler.v2.schema.ClusterStatus``, in the order of their names.

    ``refused``: node type to why; the status often has the type alone.
    """
    alive: dict[str, int] = defaultdict(int)
    pending: dict[str, int] = defaultdict(int)
    problems: dict[str, list[str]] = defaultdict(list)
    for node in (*status.active_nodes, *status.idle_nodes):
        alive[node.ray_node_type_name or _NO_TYPE] += 1
    for node in status.pending_nodes:
        pending[node.ray_node_type_name or _NO_TYPE] += 1
    for launch in status.pending_launches:
        pending[launch.ray_node_type_name] += launch.count
    for launch in status.failed_launches:
        name = launch.ray_node_type_name
        said = launch.details or refused.get(name) or "no reason is known"
        problems[name].append(" ".join(said.split()))
    return [
        NodeCount(
            type=name,
            alive=alive[name],
            pending=pending[name],
            problems=tuple(dict.fromkeys(problems[name])),
        )
        for name in sorted({*alive, *pending, *problems})
    ]


def main() -> int:
    """Print those of this job's cluster as one line of JSON."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    address = os.environ["RAY_ADDRESS"]
    counts = counted(get_cluster_status(address), _refused(address))
    there = [node._asdict() for node in Gcs(address).nodes()]
    told = {"counts": [asdict(count) for count in counts], "there": there}
    sys.stdout.write(f"{json.dumps(told)}\n")
    return 0


def _refused(address: str) -> dict[str, str]:
    """Node type to why it was refused last; empty where the head is another machine."""
    from ray import _raylet

    raylet: Any = _raylet  # has no types
    nodes = raylet.GcsClient(address=address).get_all_node_info().values()
    folders = (getattr(n, "session_dir", "") for n in nodes if getattr(n, "is_head_node", False))
    logs = (Path(folder, "logs", MONITOR_LOG) for folder in folders if folder)
    return next((found for log in logs if (found := refusals(log))), {})


if __name__ == "__main__":
    sys.exit(main())
