"""Keys: the SHA-256 of everything that decides an artifact's bytes, and how two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, no NaN.

    Raises ValueError on NaN and infinity.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode()


def key_of(inputs: Mapping[str, Any]) -> str:
    """The key of an artifact, in 64 hex digits."""
    return hashlib.sha256(canonical_json(inputs)).hexdigest()


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as ``{"a.b": leaf}``; lists of mappings count as mappings by index."""
    if isinstance(value, Mapping) and value:
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
    names = [n for n in sorted(before.keys() | after.keys()) if before.get(n) != after.get(n)]
    return tuple(
        f"{_readable(n)}: {_short(before.get(n))} -> {_short(after.get(n))}" for n in names
    )


def nearest_changes(new: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """What differs from the most similar of ``others``; empty when there are none."""
    return min((changes(old, new) for old in others), key=lambda c: (len(c), c), default=())


def _readable(name: str) -> str:
    return name.removeprefix("fields.")


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text[:12] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text
