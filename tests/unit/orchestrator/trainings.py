"""What an honest training leaves behind, without the training."""

from __future__ import annotations

import json
from collections.abc import Sequence

from orchestrator.plan.token_order import HASH_START, TokenOrder, chain_hash

FACTS = {"num_windows": 5, "seed": 0, "global_batch": 4, "skips": []}


def metric_lines(steps: Sequence[int]) -> bytes:
    """The metric lines of a training with these facts and step numbers."""
    lines, running = [], HASH_START
    order = TokenOrder(5, seed=0)
    for step, draw in zip(steps, order.batches(len(steps), 4), strict=True):
        running = chain_hash(running, draw.windows)
        lines.append(json.dumps({"step": step, "loss": 1.0, "sample_hash": running}))
    return "\n".join(lines).encode()
