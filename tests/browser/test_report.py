"""The report page in a real browser: curves to point at, without network, for every reader."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Page, expect

from orchestrator.report.comparison import write_comparison
from orchestrator.report.page import write_report
from tests.browser.conftest import Open
from tests.unit.orchestrator.report.conftest import finish
from tests.unit.orchestrator.report.test_across import EASY, run_of

Role = Literal["button", "slider", "link", "region", "img", "navigation"]
ROLES: tuple[Role, ...] = ("button", "slider", "link", "region", "img", "navigation")
TRAINING = "training loss, nats per token: value at a step"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    ledger = finish(folder)
    target = folder / "report.html"
    write_report(ledger.run, ledger.store, ledger.observed, target)
    return target


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    ledgers = [run_of(folder / name, name, EASY) for name in ("one", "other")]
    target = folder / "comparison.html"
    write_comparison([(x.run, x.store, x.observed) for x in ledgers], target)
    return target


def x_range(page: Page, figure: int = 0) -> tuple[float, float]:
    """First and last step named on the axis of a panel: what is in view, by what a person sees."""
    read = """n => {
        const panels = document.querySelectorAll("figure.curves")[n].querySelectorAll(".plot");
        return [...panels].map(p => [p.dataset.from, p.dataset.to].map(Number));
    }"""
    ranges = page.evaluate(read, figure)
    assert all(r == ranges[0] for r in ranges)  # the panels of a figure show the same steps
    low, high = ranges[0]
    return low, high


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", ["phone", "wide"])
def test_it_opens_without_a_complaint_and_fits(
    report: Path, open_page: Open, width: str, scheme: str
) -> None:
    opened = open_page(report, width, scheme=scheme)
    expect(opened.page.locator(".u-wrap")).to_have_count(5)
    assert opened.complaints == []
    assert opened.overflow_px == 0
    assert [s.is_visible() for s in opened.page.locator("figure.curves .static").all()] == [
        False
    ] * 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", ["phone", "wide"])
def test_so_does_the_page_that_compares_runs(
    comparison: Path, open_page: Open, width: str, scheme: str
) -> None:
    opened = open_page(comparison, width, scheme=scheme)
    expect(opened.page.locator(".u-wrap")).to_have_count(2)
    opened.page.locator(".u-over").first.hover()
    expect(opened.page.locator(".tip").first).to_contain_text("other-")
    assert opened.complaints == []
    assert opened.overflow_px == 0


def test_pointing_at_a_curve_shows_its_values(report: Path, open_page: Open) -> None:
    page = open_page(report).page
    plot = page.locator(".u-over").first
    plot.hover()
    tip = page.locator(".tip").first
    expect(tip).to_contain_text("warm init=twist")
    expect(tip).to_contain_text("step 2")
    expect(page.locator(".tip").nth(1)).to_be_hidden()


def test_the_legend_hides_a_curve_by_keyboard(report: Path, open_page: Open) -> None:
    page = open_page(report).page
    button = page.get_by_role("button", name="cold init=cold").first
    expect(button).to_have_attribute("aria-pressed", "true")
    button.focus()
    page.keyboard.press("Enter")
    expect(button).to_have_attribute("aria-pressed", "false")
    page.locator(".u-over").first.hover()
    tip = page.locator(".tip").first
    expect(tip).to_contain_text("warm init=twist")
    expect(tip).not_to_contain_text("cold")


def test_dragging_zooms_all_panels_of_a_figure_and_whole_brings_all_back(
    report: Path, open_page: Open
) -> None:
    page = open_page(report).page
    whole = x_range(page)
    assert whole == (1, 40)
    plot = page.locator(".u-over").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 80)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 80, steps=5)
    page.mouse.up()
    expect(page.locator(".plot").first).not_to_have_attribute("data-from", "1")
    low, high = x_range(page)
    assert 8 < low < 13
    assert 28 < high < 33
    assert x_range(page, 1) == whole  # another figure
    page.get_by_role("button", name="Whole").first.click()
    assert x_range(page) == whole


def test_a_screen_reader_hears_values_step_by_step(report: Path, open_page: Open) -> None:
    page = open_page(report).page
    slider = page.get_by_role("slider", name=TRAINING)
    slider.focus()
    page.keyboard.press("Home")
    expect(slider).to_have_attribute("aria-valuenow", "1")
    page.keyboard.press("ArrowRight")
    expect(slider).to_have_attribute(
        "aria-valuetext", "step 2: cold init=cold 4.54; warm init=twist 4.525"
    )
    expect(page.locator(".tip").first).to_be_visible()
    page.keyboard.press("+")
    low, high = x_range(page)
    assert (low, high) != (1, 40)
    page.keyboard.press("End")  # what is out of view is brought into it
    expect(slider).to_have_attribute("aria-valuenow", "40")
    assert x_range(page)[1] == 40


def test_curves_follow_the_scheme_while_the_page_is_open(report: Path, open_page: Open) -> None:
    page = open_page(report).page
    bright = page.locator("canvas").first.screenshot()
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(200)
    assert page.locator("canvas").first.screenshot() != bright


def test_the_title_of_a_figure_stands_out(report: Path, open_page: Open) -> None:
    """The caption of a table inside it does not: that is muted."""
    page = open_page(report).page
    weigh = "node => getComputedStyle(node).fontWeight"
    assert page.locator("figure.curves figcaption").first.evaluate(weigh) == "600"
    assert page.locator("table caption").first.evaluate(weigh) == "400"


def test_without_scripts_the_static_figures_are_there(report: Path, open_page: Open) -> None:
    opened = open_page(report, "phone", runs_scripts=False)
    figures = opened.page.locator("figure.curves").all()
    assert len(figures) == 3
    for figure in figures:
        assert figure.locator(".static svg").is_visible()
        assert not figure.locator(".live").is_visible()
    assert opened.overflow_px == 0


def test_everything_has_a_name_for_who_does_not_see_it(report: Path, open_page: Open) -> None:
    """Roles and names as the browser computes them."""
    page = open_page(report).page
    for role in ROLES:
        found = page.get_by_role(role).all()
        assert found, role
        for one in found:
            tree = one.aria_snapshot()
            assert '"' in tree.splitlines()[0], tree
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
