from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

from orchestrator.report.plots import Curve, curves_svg, running_mean, thinned
from orchestrator.report.record import Point, Scores, VariantRecord


def curve(arm: str, training: list[Point], validation: list[Point]) -> Curve:
    variant = VariantRecord(
        name=arm,
        overrides={"model.init": arm},
        instances={},
        recipe=None,
        training=tuple(training),
        validation=tuple(validation),
        scores=Scores(),
        continuations=(),
    )
    return Curve(variant=variant, dash="7 3", is_best=True)


def test_the_figure_is_wellformed_and_has_no_colour_of_its_own() -> None:
    points = [(1, 4.0), (2, 3.0)]
    svg = curves_svg([curve("warm", points, points)])
    assert ET.fromstring(svg).tag.endswith("svg")
    assert not re.search(r"#[0-9a-f]{6}", svg)


def test_a_training_without_validation_is_drawn() -> None:
    assert "var(--cold)" in curves_svg([curve("cold", [(1, 4.0)], [])])


def test_nothing_to_draw_is_no_figure() -> None:
    assert curves_svg([]) == ""


def test_the_running_mean_looks_back_only() -> None:
    points = [(n, float(n)) for n in range(1, 61)]  # a window of 3
    means = running_mean(points)
    assert means[:3] == [(1, 1.0), (2, 1.5), (3, 2.0)]
    assert means[-1] == (60, 59.0)


def test_a_loss_that_is_not_finite_is_a_gap_and_counts_in_no_mean() -> None:
    points = [(1, 2.0), (2, math.inf), (3, math.nan), *((n, 4.0) for n in range(4, 61))]
    means = running_mean(points)
    assert [math.isnan(mean) for _, mean in means[:5]] == [False, True, True, False, False]
    assert means[3:5] == [(4, 4.0), (5, 4.0)]


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    points = [(n, 0.0) for n in range(100_001)]
    kept = thinned(points)
    assert len(kept) <= 402
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert thinned(points[:5]) == points[:5]
    assert thinned([]) == []
