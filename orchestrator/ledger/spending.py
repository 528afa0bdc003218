"""What a run has spent, summed from its attempts, and whether that is all it may spend.

Each attempt notes, when it starts, what it holds and what that costs an hour; on Slurm, so does
every worker of a data stage. Where nodes come and go, a training counts those that it had, for as
long as it had them. Attempts of versions before this one noted nothing and count nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

from orchestrator.ledger.attempt import AttemptFolder
from orchestrator.ledger.records import understood
from orchestrator.ledger.run import RunFolder
from orchestrator.plan.planner import Plan
from orchestrator.spec.cluster import Cluster, Prices


@dataclass(frozen=True, kw_only=True)
class Spending:
    """What a run has spent so far."""

    gpu_hours: float
    price: float
    """In the currency of the cluster's prices, each attempt at those of its day."""

    def used_up(self, cluster: Cluster) -> str:
        """The limit of the cluster that is reached, in words; empty while none is."""
        limits, currency = cluster.limits, cluster.prices.currency
        if limits.max_gpu_hours is not None and self.gpu_hours >= limits.max_gpu_hours:
            return f"limits.max_gpu_hours: {self.gpu_hours:.4g} of {limits.max_gpu_hours:g} spent"
        if limits.max_price is not None and self.price >= limits.max_price:
            return f"limits.max_price: {self.price:.4g} of {limits.max_price:g} {currency} spent"
        return ""

    def seconds_left(self, cluster: Cluster, holds: Sequence[Mapping[str, float]]) -> float:
        """How long until the first limit is reached by who holds what now; infinite without."""
        limits = cluster.limits
        left = {
            "gpus": (limits.max_gpu_hours or math.inf) - self.gpu_hours,
            "price_per_h": (limits.max_price or math.inf) - self.price,
        }
        rates = {name: sum(held[name] for held in holds) for name in left}
        return min((3600 * left[n] / rates[n] for n in left if rates[n]), default=math.inf)

    def to_json(self, cluster: Cluster) -> dict[str, Any]:
        """The same beside what the cluster allows; None for no limit."""
        return {
            "gpu_hours": self.gpu_hours,
            "max_gpu_hours": cluster.limits.max_gpu_hours,
            "price": self.price,
            "max_price": cluster.limits.max_price,
            "currency": cluster.prices.currency,
        }


def held(gpus: float, cpus: float, prices: Prices) -> dict[str, float]:
    """What an attempt notes of what it holds: accelerators, CPU cores, and their price an hour."""
    price_per_h = gpus * prices.gpu_hour + cpus * prices.cpu_hour
    return {"gpus": gpus, "cpus": cpus, "price_per_h": price_per_h}


def spending(run: RunFolder, plan: Plan, *, is_alive: bool) -> Spending:
    """What all attempts of a run add up to, in GPU hours and money.

    One without a recorded end counts until now while somebody is at work on the run, else, or once
    another has followed it, until its last sign of life. So does one that has been silent for
    longer than any may be: its job was taken away, and may wait in the queue for days. Raises
    CorruptError.
    """
    until = time.time() if is_alive else -math.inf
    silent_s = run.cluster().retry.hang_timeout_s
    found = (_holds(run, leader.id, until, silent_s) for leader in plan.leaders)
    with understood(f"{run.storage.url}/stages", "move the damaged attempt's folder away"):
        holds = list(chain.from_iterable(found))
    return Spending(
        gpu_hours=math.fsum(gpus * hours for gpus, _, hours in holds),
        price=math.fsum(price_per_h * hours for _, price_per_h, hours in holds),
    )


def spending_figures(spent: Mapping[str, Any]) -> list[str]:
    """A figure for each thing that is spent or limited: ``1.5 of 10 GPU hours``."""
    units = {"gpu_hours": "GPU hours", "price": spent.get("currency", "")}
    rows = ((spent.get(name, 0.0), spent.get(f"max_{name}"), unit) for name, unit in units.items())
    return [
        f"{value:,.4g}{'' if limit is None else f' of {limit:,g}'} {unit}"
        for value, limit, unit in rows
        if value or limit is not None
    ]


def _holds(
    run: RunFolder, instance_id: str, until: float, silent_s: float
) -> Iterator[tuple[float, float, float]]:
    """Accelerators, price an hour and hours of whatever has worked on a stage instance."""
    attempts = run.attempts(instance_id)
    for attempt, later in zip(attempts, (*attempts[1:], None), strict=False):
        note = attempt.started
        if "price_per_h" in note:
            ended_at = _ended_at(attempt, later, until, silent_s)
            yield float(note["gpus"]), float(note["price_per_h"]), _hours(attempt, ended_at)
    for row in run.worker_notes(instance_id):
        hours = max(row["seen_at"] - row["started_at"], 0.0) / 3600
        yield float(row["gpus"]), float(row["price_per_h"]), hours


def _hours(attempt: AttemptFolder, ended_at: float) -> float:
    """How long it has held what it noted: with half of its nodes, half as long."""
    most = attempt.started.get("nodes")
    had = attempt.nodes if most else ((attempt.started_at, 1),)
    spans = pairwise((*had, (ended_at, 0)))
    node_s = math.fsum(number * max(until - at, 0.0) for (at, number), (until, _) in spans)
    return node_s / (most or 1) / 3600


def _ended_at(
    attempt: AttemptFolder, later: AttemptFolder | None, until: float, silent_s: float
) -> float:
    if end := attempt.end:
        return float(end["ended_at"])
    seen_at = attempt.last_sign()
    if later:
        return min(seen_at, later.started_at)
    return max(seen_at, until) if until - seen_at < silent_s else seen_at
