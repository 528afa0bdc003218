"""Reservations, such as for maintenance, that jobs' walltimes would run into.

Slurm starts no job that would not have ended by then, and says so only once it waits. One question,
and one more for each list of nodes where there is a reservation at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.backends.slurm import job_options
from orchestrator.backends.slurm_allocation import seconds_of
from orchestrator.backends.slurm_commands import ask
from orchestrator.control.slurm.jobs import PlannedJob
from orchestrator.control.slurm.partitions import NodeKind, asked_of, partitions_of, place_of
from orchestrator.errors import BackendError


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """Nodes that are kept for somebody for a while."""

    name: str
    starts_at: float
    """Seconds since the epoch."""
    ends_at: float
    """Seconds since the epoch."""
    nodes: str
    """As Slurm writes them: ``node[1-4,7]``."""


def reservations() -> tuple[Reservation, ...]:
    """Those that have not ended; none where Slurm does not answer."""
    try:
        lines = ask("scontrol", "show", "reservation", "--oneliner").splitlines()
    except BackendError:
        return ()
    found = (_reservation(line) for line in lines if line.startswith("ReservationName="))
    return tuple(r for r in found if r and r.ends_at > time.time())


def blocked_jobs(
    parts: Sequence[PlannedJob],
    kinds: Sequence[NodeKind],
    reserved: Sequence[Reservation],
    nodes: Mapping[str, str],
) -> Iterator[str]:
    """A line for each reservation that jobs would run into; ``nodes``: instance to its node.

    Those are jobs that find too few nodes outside of it and would not have ended before it.
    """
    lists = {r.nodes for r in reserved} | {k.hosts for k in kinds if reserved}
    hosts = {written: _hosts(written) for written in lists}
    for reservation in reserved:
        left_min = max(reservation.starts_at - time.time(), 0.0) / 60
        late = [part for part in parts if asked_of(part).walltime_min > left_min]
        blocked = [part for part in late if _needs(part, kinds, reservation, hosts)]
        if places := dict.fromkeys(place_of(part, nodes) for part in blocked):
            yield (
                f"reservation {reservation.name} from {_shown(reservation.starts_at)} to "
                f"{_shown(reservation.ends_at)}: {', '.join(places)} would not end before it, so "
                f"that Slurm starts them only after it; wait, or lower walltime_min below "
                f"{left_min:.0f}"
            )


def _needs(
    part: PlannedJob,
    kinds: Sequence[NodeKind],
    reservation: Reservation,
    hosts: Mapping[str, set[str]],
) -> bool:
    """Whether a job, which is not in a reservation, finds too few nodes outside of it."""
    if job_options(part.job).sbatch.reservation == reservation.name:
        return False
    there = [set[str]().union(*(hosts[k.hosts] for k in own)) for own in partitions_of(part, kinds)]
    held, num_nodes = hosts[reservation.nodes], part.job.shape.fewest_nodes
    enough = [own for own in there if len(own) >= num_nodes]
    return bool(enough) and all(len(own - held) < num_nodes for own in enough)


def _hosts(written: str) -> set[str]:
    """The nodes of a list as Slurm writes it."""
    if not written or written == "(null)":
        return set()
    try:
        return set(ask("scontrol", "show", "hostnames", written).split())
    except BackendError:
        return set()


def _reservation(line: str) -> Reservation | None:
    fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
    starts_at, ends_at = (seconds_of(fields.get(key, "")) for key in ("StartTime", "EndTime"))
    if starts_at is None or ends_at is None:
        return None
    name, nodes = fields["ReservationName"], fields.get("Nodes", "")
    return Reservation(name=name, starts_at=starts_at, ends_at=ends_at, nodes=nodes)


def _shown(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
