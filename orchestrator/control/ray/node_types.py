"""What the node types of a cluster file can ever hold, for what stages ask of Ray."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from orchestrator.plan.planner import Plan
from orchestrator.plan.stages import BY_NAME
from orchestrator.spec.cluster import Cluster, NodeType, Resources

Use = Literal["data", "training"]


def too_large(plan: Plan, cluster: Cluster, where: str) -> Iterator[str]:
    """Stages that are left to do and would wait for nodes for ever, one line each."""
    left = {i.leader for i in plan.instances if i.decision != "reuse"}
    nodes = {(i.stage, i.node): None for i in plan.leaders if i.id in left}
    for stage, node in nodes if cluster.ray.node_types else ():
        resources = cluster.resources_of(stage, node)
        if problem := _problem(cluster, stage, resources):
            yield f"{where}: resources.{node}: {problem}"


def _problem(cluster: Cluster, stage: str, resources: Resources) -> str:
    """Why none of the types has room for a stage; empty where they have."""
    use, wanted = _use_of(stage), _wanted(stage, resources)
    types = {n: t for n, t in cluster.ray.node_types.items() if use in t.used_for}
    cpus, gpus = resources.cpus_per_worker, _gpus_of_one(stage, resources)
    room = sum(_room(t, cpus, gpus) * t.max_nodes for t in types.values())
    if room >= wanted:
        return ""
    ask = f"{wanted} x {cpus} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
    known = ", ".join(
        f"{name} ({t.max_nodes} nodes of {t.cpus} CPUs and {t.gpus} GPUs)"
        for name, t in types.items()
    )
    remedy = "lower it, or give ray.node_types (and the launcher file) more"
    return f"{ask} at once: node types for {use} have room for {room}: {known or 'none'}; {remedy}"


def _use_of(stage: str) -> Use:
    return "training" if BY_NAME[stage].has_ranks else "data"


def _wanted(stage: str, resources: Resources) -> int:
    """Workers or ranks that must have room at the same time."""
    traits = BY_NAME[stage]
    if traits.has_ranks:
        return resources.sizes[-1].world_size
    return resources.min_workers if traits.is_elastic else 1


def _gpus_of_one(stage: str, resources: Resources) -> float:
    """Accelerators of one worker, rank or process."""
    traits = BY_NAME[stage]
    if not resources.gpus_per_node or traits.has_ranks:
        return float(bool(resources.gpus_per_node))
    return resources.gpus_per_worker if traits.is_elastic else resources.gpus_per_node


def _room(node_type: NodeType, cpus: int, gpus: float) -> int:
    """How many of them one node holds."""
    fits = [node_type.cpus // cpus]
    if gpus:
        fits.append(math.floor(node_type.gpus / gpus))
    return min(fits)
