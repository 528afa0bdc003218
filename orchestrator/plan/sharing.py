"""What the variants of a plan have in common, and what doing that once saves. Pure.

In: a plan, and how many hours of audio each of its corpora has, where that is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.plan.planner import Plan


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """What is done once for several variants of a sweep."""

    num_variants: int
    num_nodes: int
    """Nodes of all variants, as if each were a run of its own."""
    num_instances: int
    """What is left of them: variants that agree on a key share it."""
    num_encodings: int
    """Times that variants want audio encoded into units."""
    num_passes: int
    """Times that it is: codebooks of one encoder share a pass, of whichever layers."""
    hours_wanted: float | None
    """Audio encoded if each variant were a run of its own; None before all corpora are there."""
    hours_encoded: float | None
    """Audio that is encoded."""


def sharing(plan: Plan, corpus_hours: Mapping[str, float | None]) -> Sharing:
    """What a plan's variants share.

    ``corpus_hours``: instance of a corpus, or of what a filter leaves of one, to its hours.
    """
    units = {instance.id: instance for instance in plan.units}
    wanted = [units[id_] for v in plan.variants for id_ in v["instances"].values() if id_ in units]
    passes = [instance for instance in units.values() if instance.leader == instance.id]

    def hours_of(encoded: list[str]) -> float | None:
        hours = [corpus_hours.get(corpus) for corpus in encoded]
        known = [h for h in hours if h is not None]
        return sum(known) if len(known) == len(hours) else None

    return Sharing(
        num_variants=len(plan.variants),
        num_nodes=sum(len(v["instances"]) for v in plan.variants),
        num_instances=len(plan.instances),
        num_encodings=len(wanted),
        num_passes=len(passes),
        hours_wanted=hours_of([i.needs["corpus"] for i in wanted]),
        hours_encoded=hours_of([i.needs["corpus"] for i in passes]),
    )
