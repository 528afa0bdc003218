"""The page's figures as inline SVG: loss over steps, and attempts over time.

In: points and spans. Out: `<svg>` text whose colours are the page's CSS variables, so that a figure
follows the light or dark scheme; no user's words are in it, and the same data give the same bytes.
matplotlib takes half a second to import, so only drawing imports it.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from orchestrator.report.record import Point

MAX_POINTS = 400
"""Points of a curve that are drawn; a wider page shows no more."""
DASHES = ("none", "7 3", "2 2.5", "9 3 2 3")
"""SVG dash patterns that tell variants of one arm apart."""
NUM_RAW_CURVES = 4
"""With more variants than this, only the running means are drawn."""

_CSS = {
    "ink": "#010101",
    "muted": "#020202",
    "line": "#030303",
    "warm": "#040404",
    "cold": "#050505",
    "succeeded": "#060606",
    "failed": "#070707",
    "running": "#080808",
    "preempted": "#090909",
    "cancelled": "#0a0a0a",
}
"""CSS variable to the colour that stands for it while matplotlib draws."""
_CURVES_INCH = (9.6, 3.5)
_INCH_PER_ROW = 0.27
_GROUP_ID = re.compile(r'<g id="[^"]*">')
_REFERENCE = re.compile(r'id="|url\(#|href="#')
_FONT = re.compile(r"font-family: [^;\"]*")
_STYLE = re.compile(r"<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The losses of one variant."""

    name: str
    arm: str
    """``warm`` or ``cold``."""
    dash: str
    """One of `DASHES`."""
    is_best: bool
    """Whether it is drawn to stand out."""
    training: Sequence[Point]
    validation: Sequence[Point]


@dataclass(frozen=True, kw_only=True)
class Span:
    """One attempt in time."""

    row: str
    """Stage instance."""
    number: int
    state: str
    start_s: float
    """Seconds since the run's first attempt began."""
    end_s: float


def curves_svg(curves: Sequence[Curve]) -> str:
    """Training and validation loss over steps, all variants on the same axes; "" without any."""
    if not curves:
        return ""
    with _drawing(_CURVES_INCH) as figure:
        left, right = figure.subplots(1, 2, sharex=True, sharey=True)
        _set_margins(figure, left=0.72, bottom=0.5)
        for curve in curves:
            _draw_curve(left, right, curve, is_raw_shown=len(curves) <= NUM_RAW_CURVES)
        for axes, title in ((left, "training loss"), (right, "validation loss")):
            axes.set_title(title, loc="left")
            axes.set_xlabel("step")
            axes.grid(axis="y")
        left.set_ylabel("nats per token")
        return _svg(figure, "curves")


def _draw_curve(left: Any, right: Any, curve: Curve, *, is_raw_shown: bool) -> None:
    style = {
        "color": _CSS[curve.arm],
        "linewidth": 2.0 if curve.is_best else 1.2,
        "alpha": 1.0 if curve.is_best else 0.65,
        "linestyle": _linestyle(curve.dash),
    }
    if curve.training:
        if is_raw_shown:
            left.plot(
                *zip(*thinned(curve.training), strict=True),
                color=style["color"],
                alpha=0.22,
                linewidth=0.8,
            )
        left.plot(*zip(*thinned(running_mean(curve.training)), strict=True), **style)
    if curve.validation:
        right.plot(
            *zip(*thinned(curve.validation), strict=True), marker="o", markersize=3.5, **style
        )


def mean_window(num_points: int) -> int:
    """Steps behind one point of the running mean: a twentieth of the curve."""
    return max(1, num_points // 20)


def running_mean(points: Sequence[Point]) -> list[Point]:
    """Each loss averaged with those of the steps before it, as far as the window reaches.

    A step without a loss stays a gap and counts in no mean.
    """
    window, total, count, means = mean_window(len(points)), 0.0, 0, []
    for n, (step, loss) in enumerate(points):
        left = points[n - window][1] if n >= window else math.nan
        total += _or_zero(loss) - _or_zero(left)
        count += (not math.isnan(loss)) - (not math.isnan(left))
        means.append((step, math.nan if math.isnan(loss) else total / count))
    return means


def _or_zero(loss: float) -> float:
    return 0.0 if math.isnan(loss) else loss


def thinned(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most about ``limit`` points, the first and the last among them."""
    stride = -(-len(points) // limit)
    kept = list(points[::stride]) if stride else []
    return kept if not kept or kept[-1] == points[-1] else [*kept, points[-1]]


def gantt_svg(spans: Sequence[Span]) -> str:
    """One row a stage instance, one bar an attempt; "" without any."""
    if not spans:
        return ""
    rows = list(dict.fromkeys(span.row for span in spans))
    scale, unit = _time_unit(max(span.end_s for span in spans))
    tries = {row: sum(span.row == row for span in spans) for row in rows}
    with _drawing((_CURVES_INCH[0], _INCH_PER_ROW * len(rows) + 0.8)) as figure:
        axes = figure.subplots()
        _set_margins(figure, left=1.75, bottom=0.5)
        for span in spans:
            _draw_span(
                axes, span, y=rows.index(span.row), scale=scale, is_numbered=tries[span.row] > 1
            )
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.45, -0.7)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"{unit} since the first attempt began")
        axes.grid(axis="x")
        return _svg(figure, "gantt")


def _draw_span(axes: Any, span: Span, *, y: int, scale: float, is_numbered: bool) -> None:
    color = _CSS.get(span.state, _CSS["muted"])
    start, width = span.start_s / scale, (span.end_s - span.start_s) / scale
    # The edge keeps an attempt of a second visible on an axis of days.
    axes.barh(y, width, left=start, height=0.62, color=color, edgecolor=color, linewidth=1.2)
    if is_numbered:
        axes.text(start, y - 0.36, str(span.number), fontsize=6.5, va="bottom", color=_CSS["muted"])


def _time_unit(longest_s: float) -> tuple[float, str]:
    for scale, unit in ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes")):
        if longest_s >= 3 * scale:
            return scale, unit
    return 1.0, "seconds"


def _linestyle(dash: str) -> Any:
    return "solid" if dash == "none" else (0, tuple(float(length) for length in dash.split()))


@contextmanager
def _drawing(size_inch: tuple[float, float]) -> Iterator[Any]:
    """An empty figure in the page's colours; without pyplot, which keeps figures and a display."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_settings()):
        yield Figure(figsize=size_inch)


def _set_margins(figure: Any, *, left: float, bottom: float) -> None:
    """Margins in inches; matplotlib's own layouts draw everything twice to find theirs."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(
        left=left / width,
        bottom=bottom / height,
        right=1 - 0.15 / width,
        top=1 - 0.25 / height,
        wspace=0.06,
    )


def _settings() -> Any:
    ink, muted, line = _CSS["ink"], _CSS["muted"], _CSS["line"]
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "orchestrator",
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


def _svg(figure: Any, name: str) -> str:
    out = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(out, format="svg", metadata=nothing)
    text = out.getvalue()
    return _themed(text[text.index("<svg") :], name)


def _themed(svg: str, name: str) -> str:
    """The SVG in the page's colours and font, without what clashes between figures of one page."""
    svg = _STYLE.sub("", svg, count=1)
    svg = _GROUP_ID.sub("<g>", svg)
    svg = _REFERENCE.sub(rf"\g<0>{name}-", svg)
    svg = _FONT.sub("font-family: inherit", svg)
    for variable, stand_in in _CSS.items():
        svg = svg.replace(stand_in, f"var(--{variable})")
    return svg
