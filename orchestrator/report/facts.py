"""Facts of artifacts in words and units a reader knows: plain names, hours instead of seconds.

In: the mappings that stages report in their manifests, whatever is in them. Out: rows of text for
the page's tables.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from orchestrator.plan.keys import flatten
from orchestrator.quantities import SAMPLE_RATE_HZ, format_bytes, format_duration

Row = tuple[str, str]
"""Name and value, as shown."""

_HEX_DIGITS_SHOWN = 12
_MAX_ITEMS = 8
_SPLITS = ("train", "valid", "test")
_SUFFIXES = (("_hz", " Hz"), ("_bits", " bits"))
UNIT_MEASURES = {
    "pnmi": "PNMI, more is better",
    "phone_purity": "phone purity, more is better",
    "cluster_purity": "cluster purity, more is better",
    "abx_within": "ABX error within speakers, chance 0.5",
    "abx_across": "ABX error across speakers, chance 0.5",
}
"""What the stage unit_quality measures, and how it is to be read."""
_NOTHING = "-"
_UNREADABLE = ("cannot be read", _NOTHING, _NOTHING)
_HASH = re.compile(r"^[0-9a-f]{40,64}$")
_RATE = re.compile(r"^(\w+)_per_s$")
_UNIT = re.compile(r"_(s|bytes|hours|hz|bits)$")


def fact_rows(facts: Mapping[str, Any], skip: Collection[str] = ()) -> tuple[Row, ...]:
    """A row for each fact, nested names joined by dots; sections in ``skip`` are left out."""
    kept = {name: value for name, value in facts.items() if name not in skip}
    return tuple((label(name), shown(name, value)) for name, value in flatten(kept).items() if name)


def label(name: str) -> str:
    """``num_left_out`` as ``left out``, ``audio_s_per_s`` as ``audio s/s``."""
    if rate := _RATE.match(name):
        return f"{rate[1].removeprefix('num_').replace('_', ' ')}/s"
    parts = [part.removeprefix("num_") for part in name.split(".")]
    last = _UNIT.sub("", parts[-1])
    return " · ".join([*parts[:-1], last]).replace("_", " ")


def shown(name: str, value: Any) -> str:
    """A value in the unit that its name ends in."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(name, value)
    if isinstance(value, list | tuple):
        more = f", … ({len(value)} in all)" if len(value) > _MAX_ITEMS else ""
        return ", ".join(shown("", v) for v in value[:_MAX_ITEMS]) + more
    text = str(value)
    return text[:_HEX_DIGITS_SHOWN] if _HASH.match(text) else text


def _number(name: str, value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if name.endswith("_bytes"):
        return format_bytes(value)
    if name.endswith("_hours"):
        return format_duration(value * 3600)
    if name.endswith("_s") and not name.endswith("_per_s"):
        return format_duration(value)
    unit = next((text for end, text in _SUFFIXES if name.endswith(end)), "")
    if isinstance(value, int) or value.is_integer():
        return f"{value:,.0f}{unit}"
    return f"{value:,.1f}{unit}" if abs(value) >= 1000 else f"{value:.4g}{unit}"


def split_rows(pack_facts: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Split, recordings, utterances, tokens, audio, tokens per audio second; one row a split."""
    splits = pack_facts.get("splits")
    if not isinstance(splits, Mapping):
        return ()
    found = {name: splits[name] for name in _SPLITS if isinstance(splits.get(name), Mapping)}
    return tuple(_split_row(name, counts) for name, counts in found.items())


def _split_row(name: str, counts: Mapping[str, Any]) -> tuple[str, ...]:
    names = ("num_recordings", "num_utterances", "num_tokens", "num_samples")
    *numbers, num_samples = (n if isinstance(n := counts.get(m), int) else 0 for m in names)
    audio_s = num_samples / SAMPLE_RATE_HZ
    rate = f"{numbers[-1] / audio_s:.1f}" if audio_s else "-"
    return (name, *(f"{n:,}" for n in numbers), format_duration(audio_s), rate)


def suite_rows(suite_facts: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Split, figure, score in percent [95 %], chance, pairs: what papers quote of a suite.

    What is of another form is a row that says so.
    """
    splits = suite_facts.get("splits", {})
    if not isinstance(splits, Mapping):
        return ((_NOTHING, _NOTHING, *_UNREADABLE),)
    found = []
    for split, rows in splits.items():
        figures = rows if isinstance(rows, Mapping) else {_NOTHING: rows}
        found += [(str(split), str(name), *_suite_cells(row)) for name, row in figures.items()]
    return tuple(found)


def _suite_cells(row: Any) -> tuple[str, str, str]:
    match row:
        case {
            "value": int() | float() as value,
            "interval_95": [int() | float(), int() | float()] | None as ends,
            "chance": int() | float() as chance,
            "num_pairs": int(pairs),
        }:
            # No interval where a single pair stands for many.
            interval = f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if ends else ""
            return f"{100 * value:.1f}{interval}", f"{100 * chance:.0f}", f"{pairs:,}"
    return _UNREADABLE


def share(value: Any) -> str:
    """A number in [0, 1] to three places; "none" where there is none."""
    return f"{value:.3f}" if isinstance(value, int | float) else "none"


def unit_measures(facts: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """Measure, what units reach and what MFCC's do, of a unit_quality stage."""
    ours, mfcc = (_mapping(facts.get(name)) for name in ("units", "mfcc"))
    return tuple(
        (title, share(ours.get(name)), share(mfcc.get(name)))
        for name, title in UNIT_MEASURES.items()
    )


def doubts(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """What speaks against those measures, in words."""
    found = facts.get("doubts")
    return tuple(map(str, found)) if isinstance(found, list | tuple) else ()


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def unit_quality(encoder_facts: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """How much an encoder's units tell of phones: PNMI by condition, and that of MFCC's units.

    Both from as many clusters. Empty when the encoder's artifact carries no comparison.
    """
    found = encoder_facts.get("unit_quality")
    sections = {"same clusters": found, **found} if isinstance(found, Mapping) else {}
    rows = {name: _pair(section) for name, section in sections.items()}
    return {name: row for name, row in rows.items() if row}


def _pair(section: Any) -> tuple[float, float] | None:
    match section:
        case {"encoder_pnmi": int() | float() as own, "mfcc_pnmi": int() | float() as mfcc}:
            return float(own), float(mfcc)
    return None


def unit_verdict(quality: Mapping[str, tuple[float, float]]) -> str:
    """Whether the encoder's units beat those of MFCC, said plainly."""
    wins, num_conditions = sum(own > mfcc for own, mfcc in quality.values()), len(quality)
    if wins == num_conditions:
        return "The encoder's units tell more of the phones than MFCC units do."
    if not wins:
        return (
            "The encoder's units do not beat MFCC units: they tell no more of the phones than "
            "plain spectra do."
        )
    return f"The encoder's units beat MFCC units in {wins} of {num_conditions} conditions only."
