"""Losses over steps as inline SVG.

In: points. Out: `<svg>` text whose colours are the page's CSS variables, so that the figure follows
the light or dark scheme; no user's words are in it, and the same data give the same bytes.
matplotlib takes half a second to import, so only drawing imports it.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.report.record import Point, VariantRecord

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
}
"""CSS variable to the colour that stands for it while matplotlib draws."""
_SIZE_INCH = (9.6, 3.5)
_MARGINS = {"left": 0.075, "right": 0.984, "bottom": 0.143, "top": 0.929, "wspace": 0.06}
"""Of the whole figure; matplotlib's own layouts draw everything twice to find theirs."""
_GROUP_ID = re.compile(r'<g id="[^"]*">')
_FONT = re.compile(r"font-family: [^;\"]*")
_STYLE = re.compile(r"<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """How the losses of one variant are drawn."""

    variant: VariantRecord
    dash: str
    """One of `DASHES`."""
    is_best: bool
    """Whether it is drawn to stand out."""


def curves_svg(curves: Sequence[Curve]) -> str:
    """Training and validation loss over steps, all variants on the same axes; "" without any."""
    if not curves:
        return ""
    import matplotlib
    from matplotlib.figure import Figure

    # Without pyplot, which keeps figures and a display.
    with matplotlib.rc_context(_settings()):
        figure = Figure(figsize=_SIZE_INCH)
        left, right = figure.subplots(1, 2, sharex=True, sharey=True)
        figure.subplots_adjust(**_MARGINS)
        for curve in curves:
            _draw_curve(left, right, curve, is_raw_shown=len(curves) <= NUM_RAW_CURVES)
        for axes, title in ((left, "training loss"), (right, "validation loss")):
            axes.set_title(title, loc="left")
            axes.set_xlabel("step")
            axes.grid(axis="y")
        left.set_ylabel("nats per token")
        return _svg(figure)


def _draw_curve(left: Any, right: Any, curve: Curve, *, is_raw_shown: bool) -> None:
    training, validation, dash = curve.variant.training, curve.variant.validation, curve.dash
    style = {
        "color": _CSS[curve.variant.arm],
        "linewidth": 2.0 if curve.is_best else 1.2,
        "alpha": 1.0 if curve.is_best else 0.65,
        "linestyle": "solid" if dash == "none" else (0, tuple(map(float, dash.split()))),
    }
    if training:
        if is_raw_shown:
            left.plot(
                *zip(*thinned(training), strict=True),
                color=style["color"],
                alpha=0.22,
                linewidth=0.8,
            )
        left.plot(*zip(*thinned(running_mean(training)), strict=True), **style)
    if validation:
        right.plot(*zip(*thinned(validation), strict=True), marker="o", markersize=3.5, **style)


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


def _svg(figure: Any) -> str:
    """The figure in the page's colours and font, without names that other parts might have."""
    out = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(out, format="svg", metadata=nothing)
    svg = out.getvalue()
    svg = _STYLE.sub("", svg[svg.index("<svg") :], count=1)
    svg = _FONT.sub("font-family: inherit", _GROUP_ID.sub("<g>", svg))
    for variable, stand_in in _CSS.items():
        svg = svg.replace(stand_in, f"var(--{variable})")
    return svg
