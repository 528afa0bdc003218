"""What each partition of a site could ever hold, and which jobs of a plan that is not enough for.

One question to `sinfo`. A site that does not answer, or does not say how large its nodes are, is
not judged: sbatch will do that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.backends.base import Shape
from orchestrator.backends.slurm import job_options
from orchestrator.backends.slurm_commands import ask
from orchestrator.control.slurm.jobs import PlannedJob
from orchestrator.errors import BackendError
from orchestrator.quantities import format_several
from orchestrator.spec.cluster import SlurmOptions

_FORMAT = "%P|%c|%m|%G|%l|%s|%D|%a|%h|%M|%N"
_UNSET_MEMORY_MB = 1
"""What Slurm takes a node's memory to be where the site does not say."""


@dataclass(frozen=True, kw_only=True)
class NodeKind:
    """Equal nodes of one partition."""

    partition: str
    is_default: bool
    """Whether jobs that name no partition go there."""
    cpus: int
    mem_mb: int
    gres: str
    """As Slurm writes it: ``gpu:a100:8(S:0-1),nvme:1``."""
    max_min: float
    """Longest job in minutes."""
    max_nodes: float
    """Most nodes of one job."""
    num_nodes: int
    is_up: bool = True
    """Whether the partition starts jobs."""
    is_exclusive: bool = False
    """Whether every job gets whole nodes, whatever it asks for."""
    preemption: str = "OFF"
    """What becomes of its jobs when others come first, in Slurm's word."""
    hosts: str = ""
    """Names of the nodes, as Slurm writes them: ``node[1-4]``."""

    @property
    def shown(self) -> str:
        """What one node has."""
        memory = f", {self.mem_mb / 1024:.3g} GB" if self.mem_mb > _UNSET_MEMORY_MB else ""
        gpus = f", {format_several(num_gpus, 'GPU')}" if (num_gpus := self.num_gpus("gpu")) else ""
        return f"{format_several(self.cpus, 'CPU')}{memory}{gpus}"

    def num_gpus(self, asked: str) -> int:
        """Accelerators of a node, of what ``asked`` names: ``gpu``, or ``gpu:a100``."""
        found = re.findall(r"([\w.-]+(?::[A-Za-z][\w.-]*)?):(\d+)", self.gres)
        return sum(
            int(count) for name, count in found if name == asked or name.startswith(f"{asked}:")
        )

    def lacks(self, shape: Shape, gpus: str) -> frozenset[str]:
        """What its nodes have too little of for a job: ``cpus``, ``mem_gb``, ``gpus``."""
        has_memory = self.mem_mb <= _UNSET_MEMORY_MB or shape.mem_gb * 1024 <= self.mem_mb
        enough = {
            "cpus": shape.cpus <= self.cpus,
            "mem_gb": has_memory,
            "gpus": shape.gpus <= self.num_gpus(gpus),
        }
        return frozenset(what for what, is_there in enough.items() if not is_there)


def node_kinds() -> tuple[NodeKind, ...]:
    """All kinds of nodes, by partition; none where Slurm does not answer."""
    try:
        lines = ask("sinfo", "--all", "--exact", "--noheader", f"--format={_FORMAT}").splitlines()
    except BackendError:
        return ()
    rows = (line.strip().split("|") for line in lines)
    return tuple(_node_kind(row) for row in rows if len(row) == len(_FORMAT.split("|")))


def impossible_jobs(
    parts: Sequence[PlannedJob], kinds: Sequence[NodeKind], nodes: Mapping[str, str]
) -> Iterator[str]:
    """Why no partition that a job names could ever start it; ``nodes``: instance to its node."""
    there = names_of(kinds)
    for name in absent_partitions(parts, kinds):
        yield f"slurm: partition {name} does not exist; name one of {there}"
    yield from oversized_jobs(parts, kinds, nodes)


def oversized_jobs(
    parts: Sequence[PlannedJob], kinds: Sequence[NodeKind], nodes: Mapping[str, str]
) -> Iterator[str]:
    """Why no partition that is there could ever start a job; ``nodes``: instance to its node."""
    there = names_of(kinds)
    for part in parts:
        options = job_options(part.job).sbatch
        shape, where = asked_of(part), place_of(part, nodes)
        refusals = [_refusal(own, shape, options) for own in partitions_of(part, kinds)]
        reasons = [reason for reason, _ in refusals if reason]
        if reasons and len(reasons) == len(refusals):
            short = dict.fromkeys(what for _, lacking in refusals for what in sorted(lacking))
            keys = " and ".join(_key(part, what) for what in short)
            yield (
                f"{where}: {'; '.join(reasons)}; lower {keys}, or name another partition in slurm "
                f"(here: {there})"
            )


def names_of(kinds: Sequence[NodeKind]) -> str:
    """The partitions of these nodes."""
    return ", ".join(sorted({k.partition for k in kinds}))


def absent_partitions(parts: Sequence[PlannedJob], kinds: Sequence[NodeKind]) -> list[str]:
    """Partitions that jobs name and the site does not have."""
    named = {p for part in parts for p in _named(part) if p}
    return sorted(named - {k.partition for k in kinds})


def partitions_of(part: PlannedJob, kinds: Sequence[NodeKind]) -> list[list[NodeKind]]:
    """The kinds of nodes of each partition that a job names, of the default one for none."""
    known = [
        [k for k in kinds if (k.partition == name if name else k.is_default)]
        for name in _named(part)
    ]
    return [own for own in known if own]


def place_of(part: PlannedJob, nodes: Mapping[str, str]) -> str:
    """Where the cluster file says what a job asks for."""
    return f"resources.{nodes[part.instance]}" if part.instance else f"slurm.{part.name}"


def _named(part: PlannedJob) -> list[str]:
    """The partitions that a job names; "" for the site's default."""
    return (job_options(part.job).sbatch.partition or "").split(",")


def _key(part: PlannedJob, what: str) -> str:
    """The key that says how much of something a job asks for."""
    if part.instance and what == "cpus":
        return "cpus in slurm" if job_options(part.job).sbatch.cpus else "cpus_per_worker"
    return {"gpus": "gpus_per_node"}.get(what, what)


def _refusal(
    kinds: Sequence[NodeKind], shape: Shape, options: SlurmOptions
) -> tuple[str, frozenset[str]]:
    """Why the nodes of a partition cannot hold a job, and what is asked for too much.

    Both are empty when they can.
    """
    partition = f"partition {kinds[0].partition}"
    lacking = {k: k.lacks(shape, options.gres or "gpu") for k in kinds}
    fit = [k for k in kinds if not lacking[k]]
    if not fit:
        cpus = format_several(shape.cpus, "CPU")
        gpus = f", {format_several(shape.gpus, 'GPU')}" if shape.gpus else ""
        there = "; ".join(dict.fromkeys(k.shown for k in kinds))
        of_all = frozenset.intersection(*lacking.values()) or frozenset.union(*lacking.values())
        return (
            f"no node of {partition} has the {cpus}, {shape.mem_gb:g} GB{gpus} that are "
            f"asked of one ({there})"
        ), of_all
    num_nodes = min(sum(k.num_nodes for k in fit), max(k.max_nodes for k in fit))
    if shape.fewest_nodes > num_nodes:
        reason = f"{shape.fewest_nodes} nodes asked, {partition} gives {num_nodes:g} of this size"
        return reason, frozenset({"nodes"})
    max_min = max(k.max_min for k in fit)
    if shape.walltime_min > max_min and not options.qos:  # a QOS may allow more
        reason = f"walltime_min: {shape.walltime_min} asked, {partition} allows {max_min:g}"
        return reason, frozenset({"walltime_min"})
    return "", frozenset()


def asked_of(part: PlannedJob) -> Shape:
    """What a job asks for after all options, of each of its nodes."""
    shape, options = part.job.shape, job_options(part.job).sbatch
    return Shape(
        num_nodes=shape.num_nodes,
        min_nodes=shape.min_nodes,
        cpus=options.cpus or shape.cpus,
        gpus=shape.gpus,
        mem_gb=options.mem_gb or shape.mem_gb,
        walltime_min=options.walltime_min or shape.walltime_min,
    )


def _node_kind(row: Sequence[str]) -> NodeKind:
    partition, cpus, mem_mb, gres, limit, sizes, num_nodes, *how, hosts = row
    state, sharing, preemption = how
    return NodeKind(
        partition=partition.rstrip("*"),
        is_default=partition.endswith("*"),
        cpus=int(cpus.rstrip("+")),
        mem_mb=int(mem_mb.rstrip("+")),
        gres=gres,
        max_min=minutes_of(limit),
        max_nodes=_most(sizes),
        num_nodes=int(num_nodes),
        is_up=state == "up",
        is_exclusive=sharing == "EXCLUSIVE",
        preemption=preemption,
        hosts=hosts,
    )


def minutes_of(limit: str) -> float:
    """``infinite`` or ``UNLIMITED``, or ``[days-][hours:]minutes:seconds``, in minutes."""
    days, _, clock = limit.rpartition("-")
    if not re.fullmatch(r"(\d+:)?\d+:\d+", clock):
        return float("inf")
    *hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return int(days or 0) * 1440 + 60 * sum(hours) + minutes + seconds / 60


def _most(sizes: str) -> float:
    """The last of ``1-infinite``, or of ``4``."""
    last = sizes.rpartition("-")[2]
    return int(last) if last.isdigit() else float("inf")
