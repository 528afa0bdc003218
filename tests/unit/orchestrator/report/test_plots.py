from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET

import pytest

from orchestrator.report.plots import (
    COLOURS,
    Figure,
    Line,
    Panel,
    Style,
    figure_data,
    figure_of,
    figure_svg,
    running_mean,
    styles_of,
    tables,
    thinned,
)
from orchestrator.report.record import Point

WARM = Style(label="warm base", colour="warm", dash="7 3")
COLD = Style(label="cold base", colour="cold", dash="none", is_best=False)


def figure(*panels: tuple[Line, ...]) -> Figure:
    shown = (Panel(title=f"panel {n}", unit="nats", lines=ls) for n, ls in enumerate(panels))
    return Figure(name="losses", title="Loss", panels=tuple(shown), shares_scale=True)


def line(style: Style, *points: Point) -> Line:
    return Line(style=style, points=points)


POINTS: tuple[Point, ...] = ((1, 4.0), (2, 3.0))


def test_the_figure_is_wellformed_and_has_no_colour_of_its_own() -> None:
    svg = figure_svg(figure((line(WARM, *POINTS),), (line(COLD, *POINTS),)))
    assert ET.fromstring(svg).tag.endswith("svg")
    assert not re.search(r"#[0-9a-f]{6}", svg)
    assert "var(--warm)" in svg
    assert "var(--cold)" in svg


@pytest.mark.parametrize("colour", COLOURS)
def test_each_colour_is_a_variable_of_the_page(colour: str) -> None:
    svg = figure_svg(figure((line(Style(label="a", colour=colour, dash="none"), *POINTS),)))
    assert f"var(--{colour})" in svg


def test_lines_and_panels_without_points_are_left_out() -> None:
    kept = figure_of(figure((line(WARM, *POINTS), line(COLD)), (line(COLD),)))
    assert kept
    assert [[ln.style for ln in panel.lines] for panel in kept.panels] == [[WARM]]
    assert kept.styles == (WARM,)
    assert kept.shares_scale
    assert figure_of(figure((line(WARM),))) is None
    assert figure_of(figure((line(WARM, (1, math.nan)),))) is None


def test_what_is_kept_of_a_figure_is_as_it_was() -> None:
    """Each field of a figure and of its panels, those that are not the default among them."""
    panel = Panel(title="a", unit="nats", lines=(line(WARM, *POINTS),), is_marked=True)
    whole = Figure(name="n", title="t", panels=(panel,), shares_scale=True, x_label="tokens seen")
    assert figure_of(whole) == whole


def test_the_script_gets_the_same_lines_with_null_where_there_is_no_value() -> None:
    raw = Line(style=WARM, points=((1, 4.0), (2, math.nan)), raw=((1, 4.123456), (2, math.inf)))
    data = json.loads(json.dumps(figure_data(figure((raw,), (line(COLD, *POINTS),)))))
    assert [c["label"] for c in data["curves"]] == ["warm base", "cold base"]
    assert [c["dash"] for c in data["curves"]] == [[7.0, 3.0], []]
    assert data["panels"][0]["lines"] == [
        {"curve": 0, "points": [[1, 2], [4.0, None]], "raw": [[1, 2], [4.1235, None]]}
    ]
    assert data["panels"][1]["lines"][0]["curve"] == 1


def test_a_table_has_a_dozen_steps_with_the_last_and_a_column_a_curve() -> None:
    long = tuple((n, float(n)) for n in range(1, 1001))
    (table,) = tables(figure((line(WARM, *long), line(COLD, (1, 0.5)))))
    assert table.title == "panel 0, nats"
    assert table.columns == ("warm base", "cold base")
    assert len(table.rows) <= 13
    assert table.rows[0] == ("1", "1", "0.5")
    assert table.rows[-1] == ("1,000", "1000", "")


def test_a_dozen_curves_of_equal_standing_look_different() -> None:
    looks = {(s.colour, s.dash) for s in styles_of(str(n) for n in range(12))}
    assert len(looks) == 12


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
