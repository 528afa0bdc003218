"""Which curves of a run are shown: losses, how the training was driven, and how fast it was.

In: variants, and the looks of their curves. Out: `Figure`s, those without a point left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from orchestrator.report.plots import (
    DASHES,
    Figure,
    Line,
    Panel,
    Style,
    figure_of,
    mean_window,
    running_mean,
)
from orchestrator.report.record import Point, Record, StageRecord, VariantRecord

Drawn = Sequence[tuple[VariantRecord, Style]]
"""Variants, each with the look of its curve."""

NUM_RAW_CURVES = 4
"""With more variants than this, only the running means are drawn."""
_NUM_ALL_BEST = 2
"""With no more variants than this, all stand out."""


def drawn(record: Record, best: Collection[str]) -> Drawn:
    """The variants that have curves: an arm has a colour, the best of each arm stand out."""
    variants = [v for v in record.variants if v.training or v.validation]
    seen: Counter[str] = Counter()
    rows = []
    for variant in variants:
        style = Style(
            label=" ".join(dict.fromkeys((variant.arm, variant.name))),
            colour=variant.arm,
            dash=DASHES[seen[variant.arm] % len(DASHES)],
            is_best=variant.name in best or len(variants) <= _NUM_ALL_BEST,
        )
        seen[variant.arm] += 1
        rows.append((variant, style))
    return rows


def figures(record: Record, best: Collection[str]) -> list[Figure]:
    """Every figure of a run that has something to show."""
    variants = drawn(record, best)
    found = (losses(variants), driving(variants), speeds(record, variants))
    return [kept for figure in found if (kept := figure_of(figure))]


def losses(variants: Drawn) -> Figure:
    """Training and validation loss, all variants on the same axes."""
    is_raw_shown = len(variants) <= NUM_RAW_CURVES
    training = tuple(
        Line(style=style, points=running_mean(v.training), raw=v.training if is_raw_shown else ())
        for v, style in variants
        if v.training
    )
    unit = "nats per token"
    return Figure(
        name="losses",
        title="Loss",
        panels=(
            Panel(title="training loss", unit=unit, lines=training),
            _panel("validation loss", unit, variants, lambda v: v.validation, is_marked=True),
        ),
        shares_scale=True,
    )


def driving(variants: Drawn) -> Figure:
    """The learning rate, and the gradient's norm that it met."""
    return Figure(
        name="optimizer",
        title="Optimizer",
        panels=(
            _panel("learning rate", "", variants, lambda v: v.learning_rate),
            _panel("norm of the gradient, before clipping", "", variants, lambda v: v.grad_norm),
        ),
    )


def speeds(record: Record, variants: Drawn) -> Figure:
    """Tokens per second of each step, whichever attempt took it."""
    trainings = {stage.instance.id: stage for stage in record.stages}

    def of(variant: VariantRecord) -> Sequence[Point]:
        train = trainings.get(variant.instances.get("train", ""))
        return running_mean(_speeds_of(train)) if train and _speeds_of(train) else ()

    panel = _panel("training, start-up left out", "tokens per second", variants, of)
    return Figure(name="speeds", title="Throughput", panels=(panel,))


def _speeds_of(train: StageRecord) -> list[Point]:
    """By step, in order; of a step that was taken again, the last time."""
    taken = {step: speed for attempt in train.attempts for step, speed in attempt.speeds}
    return sorted(taken.items())


def _panel(
    title: str,
    unit: str,
    variants: Drawn,
    points: Callable[[VariantRecord], Sequence[Point]],
    *,
    is_marked: bool = False,
) -> Panel:
    lines = tuple(Line(style=style, points=points(variant)) for variant, style in variants)
    return Panel(title=title, unit=unit, lines=lines, is_marked=is_marked)


def window(record: Record) -> int:
    """Steps behind a point of the longest mean that is drawn."""
    return max((mean_window(len(v.training)) for v in record.variants), default=1)
