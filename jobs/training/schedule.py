"""The learning rate of each step, as the recipe's schedule says."""

from __future__ import annotations

import math

from orchestrator.spec.recipe import Schedule

_COSINE_FLOOR = 0.1


def learning_rate(step: int, *, schedule: Schedule, peak: float, steps: int) -> float:
    """The learning rate of optimizer step 1, 2, ... ``steps``.

    Linear warm-up to the peak, then constant; or peak * sqrt(warmup / step) (arXiv 1706.03762, eq.
    3); or half a cosine down to a tenth of the peak at the last step.
    """
    warmup = max(schedule.warmup_steps, 1)
    if step <= warmup:
        return peak * step / warmup
    if schedule.kind == "constant":
        return peak
    if schedule.kind == "inverse_sqrt":
        return peak * math.sqrt(warmup / step)
    done = (step - warmup) / max(steps - warmup, 1)
    return peak * (_COSINE_FLOOR + (1 - _COSINE_FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))
