"""How templates become one HTML file that needs nothing else: styles, scripts and data inline.

In: a template of this folder and what it shows. Out: its text. The page loads nothing: its content
policy allows its own style and, by their digests, its own two scripts; nothing that a recipe or a
log says can run. All text goes through the template's escaping.
"""

from __future__ import annotations

import base64
import datetime
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.quantities import format_bytes, format_duration
from orchestrator.report.facts import fact_rows
from orchestrator.report.plots import Figure, figure_data, figure_svg, tables

Draw = Callable[[Figure], str]
"""What draws a figure where no script runs."""

_FOLDER = Path(__file__).parent
_MAX_UNITS_SHOWN = 64
_IN_SCRIPTS = str.maketrans({"<": r"\u003c", ">": r"\u003e", "&": r"\u0026"})
"""Keeps data from ending the element that it stands in."""


def render_page(
    template: str, figures: Sequence[Figure], draw: Draw = figure_svg, **shown: Any
) -> str:
    """The page's text. What draws its figures may be replaced, for it takes most of the time."""
    page: str = (
        _environment()
        .get_template(template)
        .render(figures={figure.name: _embedded(figure, draw) for figure in figures}, **shown)
    )
    return page


def _embedded(figure: Figure, draw: Draw) -> Mapping[str, Any]:
    from markupsafe import Markup

    return {
        "figure": figure,
        "svg": Markup(draw(figure)),
        "data": Markup(json.dumps(figure_data(figure)).translate(_IN_SCRIPTS)),
        "tables": tables(figure),
    }


@functools.cache
def _environment() -> Any:
    """The templates, compiled once; jinja2 takes a while to import and to compile them."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(_FOLDER),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": format_bytes,
        "duration": format_duration,
        "units": _units,
        "utc": _utc,
    }
    scripts = _scripts()
    environment.globals |= {
        "fact_rows": fact_rows,
        "style": Markup(_text("uplot/uPlot.min.css") + _text("page.css")),
        "scripts": [Markup(script) for script in scripts],
        "script_digests": " ".join(f"'sha256-{_digest(script)}'" for script in scripts),
    }
    return environment


def _scripts() -> tuple[str, str]:
    """The plotting library with its licence, as that asks, and what calls it."""
    licence = f"/*\n{_text('uplot/LICENSE.txt')}*/\n"
    return licence + _text("uplot/uPlot.iife.min.js"), _text("figures.js")


def _text(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    """As a content policy names a script: of the text between its tags."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _units(units: Any) -> str:
    if not isinstance(units, list):
        return json.dumps(units)
    more = f" … ({len(units)} units)" if len(units) > _MAX_UNITS_SHOWN else ""
    return " ".join(map(str, units[:_MAX_UNITS_SHOWN])) + more


def _utc(at_s: float) -> str:
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
