"""Figures: curves over steps as inline SVG, as data for the page's script, and as a table.

In: points. Out: `<svg>` text whose colours are the page's CSS variables, so that the figure follows
the light or dark scheme; no user's words are in it, and the same data give the same bytes. Where
scripts run, ``figures.js`` draws the same lines with uPlot instead, to be pointed at and zoomed.
matplotlib takes half a second to import, so only drawing imports it.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.report.record import Point

MAX_POINTS = 400
"""Points of a curve that are drawn; a wider page shows no more."""
DASHES = ("none", "7 3", "2 2.5", "9 3 2 3")
"""SVG dash patterns that tell curves of one colour apart."""
COLOURS = ("warm", "cold", "third", "fourth", "fifth", "sixth")
"""CSS variables that curves are drawn in; the page gives each a value for light and dark."""

_TABLE_ROWS = 12
_CSS = {
    name: f"#{n:02d}{n:02d}{n:02d}"
    for n, name in enumerate(("ink", "muted", "line", *COLOURS), start=1)
}
"""CSS variable to the colour that stands for it while matplotlib draws."""
_SIZE_INCH = (9.6, 3.5)
_MARGINS = {"left": 0.075, "right": 0.984, "bottom": 0.143, "top": 0.929}
"""Of the whole figure; matplotlib's own layouts draw everything twice to find theirs."""
_GROUP_ID = re.compile(r'<g id="[^"]*">')
_FONT = re.compile(r"font-family: [^;\"]*")
_STYLE = re.compile(r"<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one curve looks, in every panel of a figure."""

    label: str
    colour: str
    """One of `COLOURS`."""
    dash: str
    """One of `DASHES`."""
    is_best: bool = True
    """Whether it is drawn to stand out."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one curve shows in one panel."""

    style: Style
    points: Sequence[Point]
    raw: Sequence[Point] = ()
    """What ``points`` are a mean of, drawn faintly behind them."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Some lines over the same axes."""

    title: str
    unit: str
    """Of the upright axis."""
    lines: tuple[Line, ...]
    is_marked: bool = False
    """Whether each point has a mark: there are few of them."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Panels side by side over the same steps."""

    name: str
    """Of its element on the page."""
    title: str
    panels: tuple[Panel, ...]
    shares_scale: bool = False
    """Whether all panels have the same upright axis."""
    x_label: str = "step"

    @property
    def styles(self) -> tuple[Style, ...]:
        """Every curve once, in order: the legend."""
        lines = itertools.chain.from_iterable(panel.lines for panel in self.panels)
        return tuple(dict.fromkeys(line.style for line in lines))


def figure_of(figure: Figure) -> Figure | None:
    """The figure without lines that have no values and panels that have no lines; None if empty."""
    panels = (
        replace(
            panel,
            lines=tuple(line for line in panel.lines if _has_values(line)),
        )
        for panel in figure.panels
    )
    kept = tuple(panel for panel in panels if panel.lines)
    return replace(figure, panels=kept) if kept else None


def _has_values(line: Line) -> bool:
    return any(math.isfinite(value) for _, value in line.points)


def figure_svg(figure: Figure) -> str:
    """The figure as it is seen where no script runs, and in print."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    # Without pyplot, which keeps figures and a display.
    with matplotlib.rc_context(_settings(figure.name)):
        canvas = Canvas(figsize=_SIZE_INCH)
        shares = figure.shares_scale
        grid = canvas.subplots(1, len(figure.panels), sharex=True, sharey=shares, squeeze=False)
        canvas.subplots_adjust(**_MARGINS, wspace=0.06 if shares else 0.17)
        for n, (axes, panel) in enumerate(zip(grid[0], figure.panels, strict=True)):
            _draw_panel(axes, panel, figure.x_label, has_unit=n == 0 or not shares)
        return _svg(canvas)


def _draw_panel(axes: Any, panel: Panel, x_label: str, *, has_unit: bool) -> None:
    for line in panel.lines:
        style = line.style
        look = {
            "color": _CSS[style.colour],
            "linewidth": 2.0 if style.is_best else 1.2,
            "alpha": 1.0 if style.is_best else 0.65,
            "linestyle": "solid"
            if style.dash == "none"
            else (0, tuple(map(float, style.dash.split()))),
        }
        if line.raw:
            faint = {"color": look["color"], "alpha": 0.22, "linewidth": 0.8}
            axes.plot(*zip(*thinned(line.raw), strict=True), **faint)
        marks = {"marker": "o", "markersize": 3.5} if panel.is_marked else {}
        axes.plot(*zip(*thinned(line.points), strict=True), **look, **marks)
    axes.set_title(panel.title, loc="left")
    axes.set_xlabel(x_label)
    axes.grid(axis="y")
    if has_unit:
        axes.set_ylabel(panel.unit)


def figure_data(figure: Figure) -> dict[str, Any]:
    """The figure as JSON for ``figures.js``; a point without a value has null."""
    styles = figure.styles
    return {
        "x": figure.x_label,
        "sharesScale": figure.shares_scale,
        "curves": [
            {
                "label": style.label,
                "colour": style.colour,
                "dash": [] if style.dash == "none" else [float(n) for n in style.dash.split()],
                "isBest": style.is_best,
            }
            for style in styles
        ],
        "panels": [
            {
                "title": panel.title,
                "unit": panel.unit,
                "isMarked": panel.is_marked,
                "lines": [_line_data(line, styles.index(line.style)) for line in panel.lines],
            }
            for panel in figure.panels
        ],
    }


def _line_data(line: Line, curve: int) -> dict[str, Any]:
    return {"curve": curve, "points": _columns(line.points), "raw": _columns(line.raw)}


def _columns(points: Sequence[Point]) -> list[list[float | None]]:
    """Steps, and values to five digits, which is more than a figure shows."""
    kept = thinned(points)
    values = [float(f"{y:.5g}") if math.isfinite(y) else None for _, y in kept]
    return [[step for step, _ in kept], values]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A panel's values at some of its steps."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """Step, and a value for each column; empty text where a curve has none."""


def tables(figure: Figure) -> tuple[Table, ...]:
    """Each panel in figures, for who cannot see it: a dozen steps, the last among them."""
    return tuple(_table(panel) for panel in figure.panels)


def _table(panel: Panel) -> Table:
    by_curve = [dict(line.points) for line in panel.lines]
    steps = sorted(set[int]().union(*by_curve))
    stride = max(1, -(-len(steps) // _TABLE_ROWS))
    shown = [*steps[:-1:stride], steps[-1]]
    return Table(
        title=f"{panel.title}, {panel.unit}" if panel.unit else panel.title,
        columns=tuple(line.style.label for line in panel.lines),
        rows=tuple(
            (f"{step:,}", *(_value(curve.get(step)) for curve in by_curve)) for step in shown
        ),
    )


def _value(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def styles_of(labels: Iterable[str]) -> tuple[Style, ...]:
    """A look of its own for each of some curves of equal standing."""
    return tuple(
        Style(
            label=label,
            colour=COLOURS[n % len(COLOURS)],
            dash=DASHES[n // len(COLOURS) % len(DASHES)],
        )
        for n, label in enumerate(labels)
    )


def mean_window(num_points: int) -> int:
    """Steps behind one point of the running mean: a twentieth of the curve."""
    return max(1, num_points // 20)


def running_mean(points: Sequence[Point]) -> list[Point]:
    """Each loss averaged with those of the steps before it, as far as the window reaches.

    A step without a finite loss stays a gap and counts in no mean.
    """
    import numpy as np

    losses = np.array([loss for _, loss in points])
    first = np.maximum(np.arange(len(points)) - mean_window(len(points)) + 1, 0)
    is_loss = np.isfinite(losses)
    totals, counts = (
        np.insert(values.cumsum(), 0, 0) for values in (np.where(is_loss, losses, 0), is_loss)
    )
    means = (totals[1:] - totals[first]) / np.maximum(counts[1:] - counts[first], 1)
    means[~is_loss] = math.nan
    return [(step, float(mean)) for (step, _), mean in zip(points, means, strict=True)]


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most about `MAX_POINTS` points, the first and the last among them."""
    stride = max(1, -(-len(points) // MAX_POINTS))
    return [*points[:-1:stride], *points[-1:]]


def _settings(name: str) -> Any:
    ink, muted, line = _CSS["ink"], _CSS["muted"], _CSS["line"]
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": f"orchestrator {name}",  # ids of another figure are others
        "text.parse_math": False,
        "font.size": 9.0,
        "text.color": ink,
        "axes.titlesize": 9.5,
        "axes.labelcolor": muted,
        "axes.edgecolor": line,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "figure.facecolor": "none",
        "xtick.color": line,
        "ytick.color": line,
        "xtick.labelcolor": muted,
        "ytick.labelcolor": muted,
        "grid.color": line,
        "grid.linewidth": 0.6,
        "lines.solid_capstyle": "round",
    }


def _svg(canvas: Any) -> str:
    """The figure in the page's colours and font, without names that other parts might have."""
    out = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    canvas.savefig(out, format="svg", metadata=nothing)
    svg = out.getvalue()
    svg = _STYLE.sub("", svg[svg.index("<svg") :], count=1)
    svg = _FONT.sub("font-family: inherit", _GROUP_ID.sub("<g>", svg))
    for variable, stand_in in _CSS.items():
        svg = svg.replace(stand_in, f"var(--{variable})")
    return svg
