"""What a plan will cost, as far as the recipe and earlier artifacts tell: hours, FLOPs, bytes.

Formulas: training takes ``6 N D`` FLOPs for N parameters and D tokens (arXiv 2001.08361); a ZeRO
training state takes 16 bytes a parameter (arXiv 1910.02054).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.plan.device_memory import Shape
from orchestrator.spec.cluster import Prices
from orchestrator.spec.recipe import Recipe

STATE_BYTES_PER_PARAMETER = 16
# 350m, 1.3b, 1_7b, and BLOOM's own 1b7.
_SIZE = re.compile(r"(?<![a-z0-9.])(\d+(?:[._]\d+)?[mb]|\d+b\d+)(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of one variant's training, and of its data where that is known."""

    num_parameters: int | None
    """Read off the text model's name, or of a model that is cut found by its shape; None when
    neither says."""
    train_tokens: int
    train_flop: float | None
    checkpoint_bytes: float | None
    audio_hours: float | None
    """Known once the corpus artifact is there."""


def estimate(
    recipe: Recipe, corpus_facts: Mapping[str, Any], shape: Shape | None = None
) -> Estimate:
    """The estimate of one variant; ``shape``: that of its language model, where it is known."""
    size = parameters_in_name(recipe.model.text_model)
    if recipe.model.num_layers:
        size = shape.num_parameters if shape else None
    tokens = recipe.train.global_batch_tokens * recipe.train.steps
    return Estimate(
        num_parameters=size,
        train_tokens=tokens,
        train_flop=6.0 * size * tokens if size else None,
        checkpoint_bytes=float(STATE_BYTES_PER_PARAMETER * size) if size else None,
        audio_hours=corpus_facts.get("kept_hours"),
    )


@dataclass(frozen=True, kw_only=True)
class SourceEstimate:
    """What one source of a corpus gives, and takes; None for what is not known."""

    name: str
    num_recordings: int | None
    num_left_out: int | None
    num_quarantined: int | None
    hours: float | None
    """Of audio: used, once there are units; until then what headers say of recordings kept."""
    tokens: int | None
    """Of units, rounded."""
    are_tokens_counted: bool
    """Whether the units are there; of them, each source has the share of its hours. Otherwise there
    is one a frame, or fewer where repeated ones are dropped."""
    gpu_hours: float | None
    """Accelerator hours that making the units takes; 0 once they are there."""
    epochs: float | None = None
    """How often a mixture's training uses each of its windows, at least; None without a mixture."""


def estimate_sources(
    recipe: Recipe,
    corpus_facts: Mapping[str, Any],
    unit_facts: Mapping[str, Any],
    prices: Prices,
) -> tuple[SourceEstimate, ...]:
    """What each source gives by the facts of corpus and units; none where there is no corpus."""
    counted, listed = unit_facts.get("sources") or {}, corpus_facts.get("sources") or {}
    found = _in_all(listed, counted) if counted else listed
    hours: dict[str, Any] = {
        name: facts.get("used_hours", facts.get("kept_hours")) for name, facts in found.items()
    }
    tokens_per_hour = 3600 * recipe.encoder.frame_rate_hz
    num_tokens, total = unit_facts.get("num_tokens"), sum(filter(None, hours.values()))
    if counted and num_tokens is not None and total:
        tokens_per_hour = num_tokens / total

    def gpu_hours_of(source: str) -> float | None:
        if counted:
            return 0.0
        known = hours[source] is not None and prices.encode_speed is not None
        return hours[source] / prices.encode_speed if known else None

    return tuple(
        SourceEstimate(
            name=name,
            num_recordings=facts.get("num_recordings"),
            num_left_out=facts.get("num_left_out"),
            num_quarantined=facts.get("num_quarantined"),
            hours=hours[name],
            tokens=None if hours[name] is None else round(hours[name] * tokens_per_hour),
            are_tokens_counted=bool(counted),
            gpu_hours=gpu_hours_of(name),
            epochs=_epochs(recipe, name, (hours[name] or 0.0) * tokens_per_hour),
        )
        for name, facts in found.items()
    )


_NOTHING_USED = {"used_hours": 0.0, "num_recordings": 0}


def _in_all(
    listed: Mapping[str, Mapping[str, Any]], counted: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """What is used of each source, and what either stage does not use: together, all of it."""
    found = {}
    for name in dict.fromkeys((*listed, *counted)):
        used = counted.get(name, _NOTHING_USED)
        found[name] = {**listed.get(name, {}), **used}
        for what in ("num_left_out", "num_quarantined"):
            found[name][what] = sum(of.get(name, {}).get(what, 0) for of in (listed, counted))
    return found


def _epochs(recipe: Recipe, source: str, tokens: float) -> float | None:
    if source not in recipe.mixture_ratio or not tokens:
        return None
    share = recipe.mixture_ratio[source] / sum(recipe.mixture_ratio.values())
    drawn = recipe.train.global_batch_tokens * recipe.train.steps * share
    split = recipe.split
    return drawn / (tokens * (1 - split.valid - split.test) * split.train_fraction)


def gpu_hours(flop: float | None, prices: Prices) -> float | None:
    """Accelerator hours for so much arithmetic; None where nobody says how fast they are."""
    if flop is None or prices.gpu_tflops is None:
        return None
    return flop / (prices.gpu_tflops * 1e12) / 3600


def walltimes(hours: float, num_gpus: int, walltime_min: int) -> int:
    """How many jobs of that walltime follow each other until so many accelerator hours are done."""
    return max(1, math.ceil(hours / max(num_gpus, 1) / (walltime_min / 60)))


def checkpoint_storage(recipe: Recipe, checkpoint_bytes: float) -> float:
    """Bytes of checkpoints in the store at the end, and of the one that is on its way."""
    policy = recipe.train.checkpoint
    kept = recipe.train.steps // policy.keep_every_steps if policy.keep_every_steps else 0
    return checkpoint_bytes * (policy.keep_last + kept + 1)


def parameters_in_name(name: str) -> int | None:
    """The parameter count a model's name states: ``opt-350m`` is 350 million; None when none."""
    match = _SIZE.search(name.rsplit("/", 1)[-1])
    if not match:
        return None
    size = match.group(1).lower()
    scale = 1e6 if size.endswith("m") else 1e9
    number = size.rstrip("mb").replace("_", ".").replace("b", ".")
    return round(float(number) * scale)
