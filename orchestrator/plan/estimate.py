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

from orchestrator.spec.cluster import Prices
from orchestrator.spec.recipe import Recipe

STATE_BYTES_PER_PARAMETER = 16
# 350m, 1.3b, 1_7b, and BLOOM's own 1b7.
_SIZE = re.compile(r"(?<![a-z0-9.])(\d+(?:[._]\d+)?[mb]|\d+b\d+)(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of one variant's training, and of its data where that is known."""

    num_parameters: int | None
    """Read off the text model's name; None when the name does not say."""
    train_tokens: int
    train_flop: float | None
    checkpoint_bytes: float | None
    audio_hours: float | None
    """Known once the corpus artifact is there."""


def estimate(recipe: Recipe, corpus_facts: Mapping[str, Any]) -> Estimate:
    """The estimate of one variant."""
    size = parameters_in_name(recipe.model.text_model)
    tokens = recipe.train.global_batch_tokens * recipe.train.steps
    return Estimate(
        num_parameters=size,
        train_tokens=tokens,
        train_flop=6.0 * size * tokens if size else None,
        checkpoint_bytes=float(STATE_BYTES_PER_PARAMETER * size) if size else None,
        audio_hours=corpus_facts.get("kept_hours"),
    )


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
