"""Proof that a training saw what it should: its recorded order is replayed, hash by hash.

In: what a train artifact says of itself (seed, windows, global batch, skips) and its metric lines,
each with the running hash of all windows used so far. Out: how often each window was used, or the
first step whose hash is not that of the order. The hash of the last step alone covers all of them,
across kills, resumes and changes of world size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.plan.token_order import HASH_START, TokenOrder, chain_hash

FIELDS = ("num_windows", "seed", "global_batch", "skips")


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How often each window was used in training."""

    num_windows: int
    fewest: int
    """Uses of the window that was used least, skipped positions counted as uses."""
    most: int
    """Uses of the window that was used most, skipped positions counted as uses."""
    num_skipped: int
    """Positions of the order that were passed over."""

    def __str__(self) -> str:
        times = f"{self.fewest}" if self.fewest == self.most else f"{self.fewest} or {self.most}"
        skipped = f", {self.num_skipped} uses skipped" if self.num_skipped else ""
        return f"each of {self.num_windows} windows used {times} times{skipped}"


def replay(facts: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> Coverage | str:
    """The coverage that the metric lines prove; what is wrong with them otherwise."""
    absent = [name for name in FIELDS if name not in facts]
    if absent:
        return f"the manifest does not say {', '.join(absent)}; the order cannot be replayed"
    num_windows, skips = facts["num_windows"], frozenset(facts["skips"])
    order = TokenOrder(num_windows, seed=facts["seed"], skips=skips)
    uses, running, cursor = np.zeros(num_windows, dtype=np.int64), HASH_START, 0
    for line, draw in zip(lines, order.batches(len(lines), facts["global_batch"]), strict=True):
        running, cursor = chain_hash(running, draw.windows), draw.cursor
        if running != line["sample_hash"]:
            return f"step {line['step']}: other windows than the order's were used up to here"
        np.add.at(uses, draw.windows, 1)
    passed_over = np.array(sorted(p for p in skips if p < cursor), dtype=np.int64)
    np.add.at(uses, order.windows_at(passed_over), 1)
    coverage = Coverage(
        num_windows=num_windows,
        fewest=int(uses.min()),
        most=int(uses.max()),
        num_skipped=len(passed_over),
    )
    # Once an epoch, the last epoch perhaps cut short.
    is_exact = coverage.most - coverage.fewest <= 1
    return coverage if is_exact else f"not once an epoch: {coverage}"


def steps_problem(steps: Iterable[int], expected: int) -> str:
    """What is wrong with the numbers of the recorded steps; "" for nothing."""
    return "" if list(steps) == list(range(1, expected + 1)) else f"steps are not 1..{expected}"
