"""Suites that two models have scored: differences by a bootstrap that draws both alike.

In: each pair's score under either model, as the suite_scores stage leaves it. Out: a
`SuiteDifference` for each figure that papers quote. Where a model was trained with several seeds,
the interval covers that choice as well, as for NLL by utterance (`report.paired`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.ledger.status import BROKEN
from orchestrator.report.over_seeds import half_width_95
from orchestrator.report.record import Record, StageRecord, VariantRecord

ITEMS = "items.json"
NUM_RESAMPLINGS = 2_000
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class SuiteDifference:
    """How much better the first of two models is than the second in a figure of a suite."""

    suite: str
    split: str
    figure: str
    value: float
    """First minus second, in [-1, 1]."""
    interval_95: tuple[float, float] | None
    """None where a single pair stands for many."""
    num_pairs: int

    @property
    def text(self) -> str:
        """``+3.1 [+0.4, +5.8]``, in points of percent."""
        ends = self.interval_95
        interval = f" [{100 * ends[0]:+.1f}, {100 * ends[1]:+.1f}]" if ends else ""
        return f"{100 * self.value:+.1f}{interval}"

    @property
    def verdict(self) -> str:
        """Whether the interval says which is better."""
        if self.interval_95 is None:
            return "a single pair has no interval"
        low, high = self.interval_95
        return "holds 0" if low <= 0 <= high else "excludes 0"


class _Split(NamedTuple):
    items: tuple[str, ...]
    scores_I: Any
    strata: Mapping[str, Sequence[Sequence[int]]]


def suite_differences(
    first: Sequence[tuple[Record, VariantRecord]], second: Sequence[tuple[Record, VariantRecord]]
) -> tuple[SuiteDifference, ...]:
    """Those of two models, each given once a seed, in the suites that all of them have scored.

    A suite whose files differ, or whose scores by pair are damaged or not there, is left out.
    """
    ours, theirs = ([_suites(*model) for model in side] for side in (first, second))
    if not ours or not theirs:
        return ()
    shared = [n for n in ours[0] if all(n in suites for suites in (*ours, *theirs))]
    return tuple(
        found
        for name, split in shared
        for found in _of_split(
            name, split, *([s[name, split] for s in side] for side in (ours, theirs))
        )
    )


def _of_split(
    suite: str, split: str, ours: Sequence[_Split], theirs: Sequence[_Split]
) -> list[SuiteDifference]:
    import numpy as np

    from orchestrator.stratified import interval_95, stratified_mean

    if len({one.items for one in (*ours, *theirs)}) > 1:
        return []
    sides = [[one.scores_I for one in side] for side in (ours, theirs)]
    gain_I = np.mean(sides[0], axis=0) - np.mean(sides[1], axis=0)
    found = []
    for figure, strata in ours[0].strata.items():
        value = stratified_mean(gain_I, strata)
        by_seed = [[stratified_mean(scores, strata) for scores in side] for side in sides]
        of_seeds = half_width_95(*by_seed)
        ends = interval_95(gain_I, strata, NUM_RESAMPLINGS, _SEED)
        below, above = (math.hypot(end - value, of_seeds) for end in ends or (value, value))
        found.append(
            SuiteDifference(
                suite=suite,
                split=split,
                figure=figure,
                value=value,
                interval_95=(value - below, value + above) if ends else None,
                num_pairs=sum(map(len, strata)),
            )
        )
    return found


def _suites(record: Record, variant: VariantRecord) -> dict[tuple[str, str], _Split]:
    """By suite and split, what a model has scored."""
    own = set(variant.instances.values())
    found: dict[tuple[str, str], _Split] = {}
    for stage in record.of_stage("suite_scores"):
        if stage.instance.id in own and stage.is_complete:
            found |= {(stage.suite_name, name): split for name, split in _splits(stage).items()}
    return found


def _splits(stage: StageRecord) -> dict[str, _Split]:
    try:
        return _read(stage)
    except (ImportError, *BROKEN):
        return {}


def _read(stage: StageRecord) -> dict[str, _Split]:
    import numpy as np

    document = stage.storage.read_json(ITEMS)
    found = {}
    for name, split in document["splits"].items():
        scores_I = np.array(split["scores"], dtype=np.float64)
        strata = {str(figure): of for figure, of in split["figures"].items()}
        positions = {n for of in strata.values() for stratum in of for n in stratum}
        if len(scores_I) != len(split["items"]) or not positions <= set(range(len(scores_I))):
            raise ValueError(f"{stage.storage.url}/{ITEMS}: is not what the stage writes")
        # The suite's files are a part of what its pairs are called by.
        items = (str(document["fingerprint"]), *map(str, split["items"]))
        found[str(name)] = _Split(items, scores_I, strata)
    return found
