"""Keys: the SHA-256 of everything that decides an artifact's bytes, and how two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.spec.model import Spec

KEY_DIGITS = 12
"""Hex digits of a key in names of folders and instances."""
_ALWAYS_SPELLED = {
    "Corpus": "sources snapshot languages data_fraction windows shard_hours",
    "Source": "name adapter language lowpass_hz",
    "Windows": "min_s max_s",
    "Split": "valid test",
    "Model": "text_model revision sha256 num_layers init init_std",
    "Optimizer": "lr betas eps weight_decay grad_clip",
    "Schedule": "kind warmup_steps",
}
"""Fields that are in keys even at their default, because they were before others were left out.
Never add to these: a field that is not here re-keys nothing where it is not used."""

_NEVER = {"Corpus": "max_quarantine_percent filter", "LanguageId": "model"}
"""Fields that change no result, or that of another stage."""


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, no NaN.

    Raises ValueError on NaN and infinity.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode()


_MAX_CHANGES = 4
"""Most fields in which an artifact of the same recipe differs; more are another recipe's."""


def keyed(section: Spec) -> dict[str, Any]:
    """A section of a recipe as it stands in keys: plain data without fields at their default.

    The fields of `_ALWAYS_SPELLED` stay.
    """
    kind = type(section).__name__
    spelled, never = (fields.get(kind, "").split() for fields in (_ALWAYS_SPELLED, _NEVER))
    fields = type(section).model_fields
    return {
        name: _keyed(value)
        for name, value in section
        if name not in never
        and (
            name in spelled
            or fields[name].is_required()
            or value != fields[name].get_default(call_default_factory=True)
        )
    }


def _keyed(value: Any) -> Any:
    if isinstance(value, Spec):
        return keyed(value)
    return [_keyed(v) for v in value] if isinstance(value, tuple) else value


def key_of(inputs: Mapping[str, Any]) -> str:
    """The key of an artifact, in 64 hex digits."""
    return hashlib.sha256(canonical_json(inputs)).hexdigest()


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as ``{"a.b": leaf}``; lists of mappings count as mappings by index.

    An empty mapping is nothing.
    """
    if isinstance(value, Mapping):
        parts: Iterable[tuple[str, Any]] = value.items()
    elif isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
        parts = ((str(i), v) for i, v in enumerate(value))
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, part in parts:
        flat |= flatten(part, f"{prefix}.{name}" if prefix else name)
    return flat


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """The key inputs that differ, each as ``name: old -> new``; upstream keys and fields alike."""
    before, after = flatten(old), flatten(new)
    absent = object()
    names = [
        n
        for n in sorted(before.keys() | after.keys())
        if before.get(n, absent) != after.get(n, absent)
    ]
    return tuple(
        f"{n.removeprefix('fields.')}: {_short(before, n)} -> {_short(after, n)}" for n in names
    )


def nearest_changes(new: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """What differs from the most similar of ``others``; empty when none is near.

    Near is what is made of the same roles, differs in a handful of fields and agrees in most.
    """
    roles = set(new.get("upstream", ()))
    alike = (changes(old, new) for old in others if set(old.get("upstream", ())) == roles)
    nearest = min(alike, key=lambda c: (len(c), c), default=())
    num_fields = sum(not name.startswith("upstream.") for name in flatten(new))
    num_changed = sum(not change.startswith("upstream.") for change in nearest)
    return nearest if num_changed <= min(_MAX_CHANGES, (num_fields - 1) // 2) else ()


def _short(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "not set"
    value = values[name]
    text = json.dumps(value) if not isinstance(value, str) else value
    return text[:KEY_DIGITS] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text
