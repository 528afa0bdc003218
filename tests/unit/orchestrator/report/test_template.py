"""What every page keeps to: one file, scripts by digest alone, colours that can be read."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest

from orchestrator.report.plots import COLOURS
from tests.unit.orchestrator.report.conftest import Ledger

CSS = Path("orchestrator/report/page.css").read_text()
SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
UPLOT = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}
"""Files of ``dist`` in the npm package uplot 1.6.32."""
READABLE = 4.5
"""Contrast of text, WCAG 2.2 level AA."""


def digest_of(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_the_policy_names_both_scripts_and_no_other(untouched: tuple[Ledger, str]) -> None:
    _, page = untouched
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    allowed = re.findall(r"sha256-([\w+/=]+)", policy.replace("&#39;", "'"))
    assert allowed == [digest_of(script) for script in SCRIPT.findall(page)]
    assert len(allowed) == 2
    assert "unsafe-eval" not in policy


def test_the_plotting_library_is_the_published_file_under_its_licence(
    untouched: tuple[Ledger, str],
) -> None:
    for name, sha256 in UPLOT.items():
        data = (Path("orchestrator/report/uplot") / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == sha256, name
    assert "Permission is hereby granted, free of charge" in SCRIPT.findall(untouched[1])[0]


def colours_of(css: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", css))


def luminance(colour: str) -> float:
    """Relative luminance of sRGB, as WCAG defines it."""
    parts = (int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_of_text_and_curves_can_be_read(scheme: str) -> None:
    light, dark = CSS.split("@media (prefers-color-scheme: dark)")[:2]
    colours = colours_of(light if scheme == "light" else dark.split("* {")[0])
    assert set(COLOURS) <= colours.keys()
    behind = [colours.pop("page"), colours.pop("panel")]
    del colours["line"]
    low = {
        name: round(min(contrast(colour, back) for back in behind), 2)
        for name, colour in colours.items()
    }
    assert {name: value for name, value in low.items() if value < READABLE} == {}


PARTS = {
    path.name: path.read_text(encoding="utf-8")
    for pattern in ("*.html", "*.js", "uplot/*.js")
    for path in Path("orchestrator/report").glob(pattern)
}
ELEMENT = re.compile(r"<([a-z][a-z0-9]*)|element\(\"(\w+)\"")


def selectors() -> str:
    plain = re.sub(r"/\*.*?\*/|\([^()]*\)", "", CSS, flags=re.DOTALL)
    return " ".join(re.findall(r"(?:^|[{};])\s*([^{}@;]+)\{", plain))


def test_each_rule_of_the_style_is_of_an_element_or_class_of_the_pages() -> None:
    """A name that is split or misspelt is of neither, and its rule does nothing."""
    text = "\n".join(PARTS.values())
    elements = {name for names in ELEMENT.findall(text) for name in names if name}
    classes = set(re.findall(r"\.([a-z][\w-]*)", selectors()))
    named = set(re.findall(r"(?<![\w.:\[\"=-])([a-z][a-z0-9]*)", selectors()))
    assert len(named) > 20
    assert named <= elements
    assert {name for name in classes if not re.search(rf"\b{re.escape(name)}\b", text)} == set()
    assert ".figure figcaption" in selectors()
