"""Which trainings are the same but for their length, so that one can go on from the other's steps.

Pure: compares what keys are made of. `ledger.extension` takes a checkpoint over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.plan.keys import key_of
from orchestrator.plan.stages import BY_NAME

Inputs = Mapping[str, Any]
"""What a key is the digest of."""


def relatives(inputs: Inputs, others: Iterable[Inputs]) -> tuple[Inputs, ...]:
    """Those of ``others`` that differ from a training in nothing but how many steps it takes."""
    total = BY_NAME[inputs["stage"]].total
    if not total:
        return ()
    own, path = key_of(inputs), total.split(".")
    regardless = key_of(_without(inputs, path))
    return tuple(other for other in others if key_of(other) != own and _is(regardless, other, path))


def obstacle(inputs: Inputs) -> str:
    """Why steps of a training are not those of a longer one; empty when they are."""
    stage = BY_NAME[inputs["stage"]]
    return stage.obstacle(inputs["fields"]) if stage.total else ""


def _is(regardless: str, other: Inputs, path: Sequence[str]) -> bool:
    try:
        return key_of(_without(other, path)) == regardless
    except (AttributeError, KeyError, TypeError):  # inputs of something else, or damaged ones
        return False


def _without(inputs: Inputs, path: Sequence[str]) -> dict[str, Any]:
    """Key inputs without one dotted field."""
    return {**inputs, "fields": _less(inputs["fields"], path)}


def _less(fields: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    name, *rest = path
    return {
        key: _less(value, rest) if key == name else value
        for key, value in fields.items()
        if key != name or rest
    }
