"""The sweep of a recipe: axes of values and of named points, and the product of them all.

In: ``{dotted key: [values]}`` and ``{axis: {point: {dotted key: value, ...}}}``. Out: the variants,
each by name, with what it sets.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from orchestrator.spec.model import Name

MAX_VARIANTS = 1000
"""Most points of one sweep; more is a slip of the pen."""
POINTS_TAG, VALUES_TAG = "constrained-points", "constrained-values"
"""What pydantic calls either kind of axis in the place of a problem, where no user wants it."""

Values = Annotated[tuple[str | int | float | bool | None, ...], Field(min_length=1)]
"""Values of the one key that an axis is called by."""
Points = Annotated[
    dict[Name, Annotated[dict[str, Any], Field(json_schema_extra={"minProperties": 1})]],
    Field(json_schema_extra={"minProperties": 1, "additionalProperties": False}),
]
"""Points by name, each a mapping of dotted keys."""


def _kind(axis: Any) -> str:
    return POINTS_TAG if isinstance(axis, Mapping) else VALUES_TAG


Axis = Annotated[
    Annotated[Values, Tag(VALUES_TAG)] | Annotated[Points, Tag(POINTS_TAG)], Discriminator(_kind)
]
Sweep = dict[str, Axis]


@dataclass(frozen=True)
class SweepPoint:
    """One variant of a sweep."""

    name: str
    """``base`` without a sweep; else, axis by axis, the name of the point, or the last part of the
    key with its value: ``hubert-50hz,num_clusters=100``. Whole keys where those clash."""
    overrides: Mapping[str, Any]
    """Dotted key to value."""


def sweep_points(sweep: Sweep) -> Iterator[SweepPoint]:
    """The product of all axes, or one point that sets nothing."""
    shown = _shown_keys(sweep)
    axes = [_choices(shown[axis], axis, given) for axis, given in sweep.items()]
    for chosen in itertools.product(*axes):
        overrides = {key: value for _, sets in chosen for key, value in sets.items()}
        yield SweepPoint(",".join(name for name, _ in chosen) or "base", overrides)


def require_sound(sweep: Sweep) -> None:
    """Raises ValueError, which names the place, where variants could not be told apart or made."""
    for axis, given in sweep.items():
        if isinstance(given, Mapping):
            _require_points(axis, given)
        else:
            _require_distinct(axis, given)
    _require_own_keys(sweep)
    if (num_variants := math.prod(map(len, sweep.values()))) > MAX_VARIANTS:
        raise ValueError(f"sweep: {num_variants} variants; keep it to {MAX_VARIANTS}")


def _shown_keys(sweep: Sweep) -> dict[str, str]:
    """How the axes' keys stand in names: their last parts, unless those clash."""
    keys = [axis for axis, given in sweep.items() if not isinstance(given, Mapping)]
    short = [key.rsplit(".", 1)[-1] for key in keys]
    are_distinct = len(set(short)) == len(short)
    return {axis: axis.rsplit(".", 1)[-1] if are_distinct else axis for axis in sweep}


def _choices(shown: str, axis: str, given: Axis) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and overrides of each point of an axis."""
    if isinstance(given, Mapping):
        return list(given.items())
    return [(f"{shown}={value}", {axis: value}) for value in given]


def _require_distinct(axis: str, values: Values) -> None:
    texts = [str(value) for value in values]
    # 1 and 1.0 are one value with two names, 1 and '1' two values with one.
    counts = [max(values.count(v), texts.count(str(v))) for v in values]
    if twice := next((t for t, n in zip(texts, counts, strict=True) if n > 1), None):
        raise ValueError(f"sweep.{axis}: {twice} is given twice; keep one")


def _require_points(axis: str, points: Points) -> None:
    if not points:
        raise ValueError(f"sweep.{axis}: no point; name one, with the dotted keys that it sets")
    known: dict[str, str] = {}
    for name, sets in points.items():
        where = f"sweep.{axis}.{name}"
        if not sets:
            raise ValueError(f"{where}: sets nothing; give it dotted keys, or leave it out")
        if any(key.split(".")[0] == "sweep" for key in sets):
            raise ValueError(
                f"{where}: a point has no sweep of its own; give the sweep an axis more"
            )
        text = json.dumps(sets, sort_keys=True, default=str)  # where 1 and True are apart
        if (same := known.setdefault(text, name)) != name:
            raise ValueError(f"{where}: sets what {same} does; keep one")
        if within := _overlap(sets, sets):
            raise ValueError(f"{where}: {within[0]} is a part of {within[1]}; set it there")


def _require_own_keys(sweep: Sweep) -> None:
    """No key, and no part of a section, may be set by two axes: the order would decide."""
    keys = {
        axis: list(dict.fromkeys(k for sets in given.values() for k in sets))
        if isinstance(given, Mapping)
        else [axis]
        for axis, given in sweep.items()
    }
    for one, other in itertools.combinations(sweep, 2):
        if not any(isinstance(sweep[axis], Mapping) for axis in (one, other)):
            continue
        shared = next((k for k in keys[one] if k in keys[other]), None)
        if shared is None and (within := _overlap(keys[one], keys[other])):
            shared = within[0]
        if shared:
            raise ValueError(
                f"sweep: {shared} is set by {one} and by {other}; leave it to one of them"
            )


def _overlap(ones: Any, others: Any) -> tuple[str, str] | None:
    """A key that lies in a section which is set as a whole, and that section."""
    pairs = [*itertools.product(ones, others), *itertools.product(others, ones)]
    return next(((part, whole) for part, whole in pairs if part.startswith(f"{whole}.")), None)
