"""When to save: every so many steps, every so many minutes, or as the cost of it advises.

``auto`` takes sqrt(2 C M) seconds between checkpoints (Young 1974; Daly 2006, eq. 20 to first
order): C is how long training stands still for one, measured here, M the mean time between
failures. It is never shorter than a publication takes. Rank 0 decides and tells the others.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque

from orchestrator.spec.recipe import Checkpoint

FIRST_AFTER_S = 60.0
"""``auto`` makes its first checkpoint after this long, to learn what one costs."""
_REMEMBERED = 5


class CheckpointInterval:
    """The choice, and what it is made of."""

    def __init__(self, policy: Checkpoint, *, mtbf_s: float, step: int = 0) -> None:
        self._policy, self._mtbf_s = policy, mtbf_s
        self._stalls: deque[float] = deque(maxlen=_REMEMBERED)
        self._publish_s = 0.0
        self._saved_at, self._saved_step = time.monotonic(), step

    @property
    def interval_s(self) -> float | None:
        """Seconds between checkpoints; None when they are counted in steps."""
        if self._policy.every_min is not None:
            return self._policy.every_min * 60
        if self._policy.every_steps != "auto":
            return None
        if not self._stalls:
            return FIRST_AFTER_S
        stall_s = statistics.median(self._stalls)
        return max(math.sqrt(2 * stall_s * self._mtbf_s), self._publish_s)

    def is_due(self, step: int) -> bool:
        """Whether to save after this step."""
        interval_s = self.interval_s
        if interval_s is not None:
            return time.monotonic() - self._saved_at >= interval_s
        assert isinstance(self._policy.every_steps, int)  # what else it may be has an interval
        # One that was put off stays due.
        return step // self._policy.every_steps > self._saved_step // self._policy.every_steps

    def saved(self, step: int, *, stall_s: float, publish_s: float) -> None:
        """Learn what a checkpoint cost, and count from here."""
        self._stalls.append(stall_s)
        self._publish_s = publish_s
        self._saved_at, self._saved_step = time.monotonic(), step

    def facts(self) -> dict[str, float]:
        """What the interval was chosen from."""
        known = {"mtbf_s": self._mtbf_s, "publish_s": self._publish_s}
        if self._stalls:
            known["stall_s"] = statistics.median(self._stalls)
        if self.interval_s is not None:
            known["interval_s"] = self.interval_s
        return known
