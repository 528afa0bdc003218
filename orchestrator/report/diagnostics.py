"""Signs of the failures that speech language models are known for, and what to try.

In: a run's record and its comparisons. Out: `Finding`s. The signs are those of instability, high
perplexity, lexical scores at chance and a warm start that does not help. Each is a rule with its
threshold in this file; a finding says what was seen, in figures, so that it can be judged.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.report.arms import Comparison, measure
from orchestrator.report.plots import running_mean
from orchestrator.report.record import Point, Record, VariantRecord

RISE = 1.05
"""A loss that ends so much above its lowest has risen: of training's mean, and of validation."""
SPIKE = 10.0
"""A gradient's norm this many times its median of the `_BEFORE` steps before is a spike."""
STILL_FALLING = 0.01
"""Share of the loss by which the last quarter of validation falls where it is not done."""
_BEFORE = 20
_MIN_VALIDATIONS = 4
_LEXICAL = "wuggy"

SIGNS = (
    "loss or gradient that explodes",
    "loss that rises again",
    "perplexity no better than counting",
    "a training that was not over",
    "lexical scores at chance",
    "a warm start that does not help",
)
"""What is looked for."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A sign that something went wrong."""

    sign: str
    """What was seen, with its figures."""
    tries: tuple[str, ...]
    """What to try, the likeliest first."""


_STEADIER = (
    "lower train.optimizer.lr by half, or lengthen train.schedule.warmup_steps",
    "train.precision: fp32 for some hundred steps says whether rounding is to blame",
    "see the events of the attempts below: samples that were skipped are named there",
)
_LEARNS_LITTLE = (
    "train longer, or with a higher train.optimizer.lr: sweep it for each arm by itself",
    "more speech: at a few hours counting pairs is hard to beat",
    "fewer units, or a lower frame rate: the same speech is then fewer, likelier tokens",
)
_OVERFIT = (
    "more speech, or fewer train.steps: see how often the data was gone through",
    "a smaller model: fewer layers, or a smaller text model",
)
_UNFINISHED = ("more train.steps: this many ended it before it had learned what it could",)
_WORDS = (
    "evaluate.unit_quality, to judge units by phones: try another encoder.layer, more clusters, or "
    "another frame rate",
    "a larger model and more speech: at 1e18 to 3e18 FLOPs sWUGGY is 55 to 58 in published runs, "
    "and sBLIMP and spoken StoryCloze are at chance",
    "an encoder that was trained on this language",
)
_NO_HELP = (
    "tune train.optimizer.lr for each arm: what suits cold may undo what warm brought",
    "at least three seeds an arm: in small models seeds differ by more than the arms do",
    "a larger text model: the gain that is published grows with it",
)


def findings(record: Record, matches: Sequence[Comparison]) -> tuple[Finding, ...]:
    """Everything that was seen, variant by variant, then of suites and arms."""
    return (
        *(finding for variant in record.variants for finding in _of_variant(record, variant)),
        *_of_suites(record),
        *(finding for comparison in matches for finding in _of_arms(comparison)),
    )


def _of_variant(record: Record, variant: VariantRecord) -> Iterator[Finding]:
    yield from _explosions(variant)
    yield from _rises(variant)
    yield from _no_better_than_counting(variant)
    trained = {stage.instance.id for stage in record.of_stage("train") if stage.is_complete}
    if variant.instances.get("train") in trained:
        yield from _unfinished(variant)


def _explosions(variant: VariantRecord) -> Iterator[Finding]:
    steps = [*variant.training, *variant.grad_norm]
    if lost := sorted({step for step, value in steps if not math.isfinite(value)}):
        num_steps = len({step for step, _ in steps})
        sign = (
            f"{variant.name}: {len(lost):,} of {num_steps:,} steps have no finite loss or "
            f"gradient, the first of them step {lost[0]:,}."
        )
        yield Finding(sign=sign, tries=_STEADIER)
    spikes = _spikes(_finite(variant.grad_norm))
    if spikes:
        step, norm, median = max(spikes, key=lambda spike: spike[1] / spike[2])
        sign = (
            f"{variant.name}: the gradient's norm is above {SPIKE:.0f} times its median of the "
            f"{_BEFORE} steps before at {len(spikes):,} steps, {norm:.3g} against {median:.3g} at "
            f"step {step:,}."
        )
        yield Finding(sign=sign, tries=_STEADIER)


def _spikes(norms: Sequence[Point]) -> list[tuple[int, float, float]]:
    """Step, norm and the median before it; not of the first steps, where norms fall anyway."""
    found = []
    for n in range(_BEFORE, len(norms)):
        median = statistics.median(norm for _, norm in norms[n - _BEFORE : n])
        if norms[n][1] > SPIKE * median > 0:
            found.append((*norms[n], median))
    return found


def _rises(variant: VariantRecord) -> Iterator[Finding]:
    mean = _finite(running_mean(variant.training)) if variant.training else []
    if sign := _rise(mean, f"{variant.name}: training loss, as a running mean,"):
        yield Finding(sign=sign, tries=_STEADIER)
    elif sign := _rise(_finite(variant.validation), f"{variant.name}: validation loss"):
        yield Finding(sign=sign, tries=_OVERFIT)


def _finite(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if math.isfinite(point[1])]


def _rise(points: Sequence[Point], what: str) -> str:
    """That a curve ends above its lowest point, where it does."""
    if not points:
        return ""
    step, lowest = min(points, key=lambda point: point[1])
    last_step, last = points[-1]
    if last <= RISE * lowest:
        return ""
    end = f"ended at {last:.3f}, step {last_step:,}"
    return f"{what} was lowest at step {step:,} ({lowest:.3f}) and {end}."


def _no_better_than_counting(variant: VariantRecord) -> Iterator[Finding]:
    model, bigram = measure(variant, "test"), measure(variant, "test", "bigram")
    if model and bigram and model.perplexity >= bigram.perplexity:
        sign = (
            f"{variant.name}: test perplexity {model.text}, no lower than {bigram.text} by "
            "counting pairs of units."
        )
        yield Finding(sign=sign, tries=_LEARNS_LITTLE)


def _unfinished(variant: VariantRecord) -> Iterator[Finding]:
    points = _finite(variant.validation)
    if len(points) < _MIN_VALIDATIONS:
        return
    (step, before), (last_step, last) = points[-1 - len(points) // 4], points[-1]
    if before > 0 and (before - last) / before > STILL_FALLING:
        sign = (
            f"{variant.name}: validation loss was still falling, from {before:.3f} at step "
            f"{step:,} to {last:.3f} at step {last_step:,}."
        )
        yield Finding(sign=sign, tries=_UNFINISHED)


def _of_suites(record: Record) -> Iterator[Finding]:
    """Lexical scores whose interval does not lie above chance."""
    for stage in record.stages:
        suite, splits = stage.suite_name, stage.facts.get("splits")
        if _LEXICAL not in suite.lower() or not isinstance(splits, Mapping):
            continue
        for split, figures in splits.items():
            for name, row in figures.items() if isinstance(figures, Mapping) else ():
                if text := _at_chance(row):
                    where = f"{', '.join(stage.instance.variants)}: {suite} {split}, {name}"
                    yield Finding(sign=f"{where}: {text}.", tries=_WORDS)


def _at_chance(row: Any) -> str:
    match row:
        case {
            "value": int() | float() as value,
            "interval_95": [int() | float() as low, int() | float() as high],
            "chance": int() | float() as chance,
        } if low <= chance:
            interval = f"[{100 * low:.1f}, {100 * high:.1f}]"
            how = "cannot be told from" if chance <= high else "is below"
            return f"{100 * value:.1f} {interval} {how} chance, {100 * chance:.0f}"
    return ""


def _of_arms(comparison: Comparison) -> Iterator[Finding]:
    paired = comparison.paired
    if paired and (paired.value >= 0 or not paired.excludes_zero):
        sign = f"{comparison.label}: warm less cold is {paired.text}, paired: warm is no better."
        yield Finding(sign=sign, tries=_NO_HELP)
