"""Proof that a training saw what it should: its recorded order is replayed, hash by hash.

In: what a train artifact says of itself (seed, windows, global batch, skips, the streams of a
mixture) and its metric lines, each with the running hash of all windows used so far. Out: how often
each window was used, unless a step's hash is not that of the order. The hash of the last step alone
covers all of them, across kills, resumes and changes of world size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.errors import CorruptError
from orchestrator.plan.mixture import Ints, Stream
from orchestrator.plan.token_order import HASH_START, TokenOrder, chain_hash

FIELDS = ("num_windows", "seed", "global_batch", "skips")


def replay(facts: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], num_steps: int) -> str:
    """How often the metric lines of so many steps prove that each window was used, in words.

    Skipped positions count as uses. Raises CorruptError when the lines prove something else.
    """
    if [line["step"] for line in lines] != list(range(1, num_steps + 1)):
        raise CorruptError(f"steps are not 1..{num_steps}, each once")
    if absent := [name for name in FIELDS if name not in facts]:
        names = ", ".join(absent)
        raise CorruptError(f"the manifest does not say {names}; the order cannot be replayed")
    streams, skips = _streams(facts), frozenset(facts["skips"])
    num_windows = facts["num_windows"]
    order = TokenOrder(num_windows, seed=facts["seed"], skips=skips, mixture=streams)
    uses, running, cursor = np.zeros(num_windows, dtype=np.int64), HASH_START, 0
    for line, draw in zip(lines, order.batches(len(lines), facts["global_batch"]), strict=True):
        running, cursor = chain_hash(running, draw.windows), draw.cursor
        if running != line["sample_hash"]:
            raise CorruptError(
                f"step {line['step']}: other windows than the order's were used up to here"
            )
        np.add.at(uses, draw.windows, 1)
    passed_over = np.array(sorted(p for p in skips if p < cursor), dtype=np.int64)
    np.add.at(uses, order.windows_at(passed_over), 1)
    coverage = _coverage(uses, order, [stream.name for stream in streams])
    skipped = f", {len(passed_over)} uses skipped" if len(passed_over) else ""
    return f"{coverage}{skipped}"


def _streams(facts: Mapping[str, Any]) -> list[Stream]:
    """The streams of a mixture; none without one. Raises CorruptError."""
    try:
        streams = [Stream.model_validate(stream) for stream in facts.get("mixture", ())]
    except ValueError as error:
        raise CorruptError(f"the manifest's mixture cannot be read: {error}") from None
    if streams and sum(stream.num_windows for stream in streams) != facts["num_windows"]:
        raise CorruptError("the manifest's mixture has other windows than it says there are")
    return streams


def _coverage(uses: Ints, order: TokenOrder, names: Sequence[str]) -> str:
    """How often the windows of each stream were used. Raises CorruptError."""
    of_streams = np.split(uses, np.cumsum(order.sizes)[:-1])
    said = [f"{name}: {_times(own)}" for name, own in zip(names or [""], of_streams, strict=True)]
    coverage = "; ".join(said).removeprefix(": ")
    if any(np.ptp(own) > 1 for own in of_streams):  # the last epoch may be cut short
        raise CorruptError(f"not once an epoch: {coverage}")
    return coverage


def _times(uses: Ints) -> str:
    fewest, most = int(uses.min()), int(uses.max())
    times = f"{fewest}" if fewest == most else f"{fewest} or {most}"
    return f"each of {len(uses)} windows used {times} times"
