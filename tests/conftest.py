"""What every test shares: golden files, no cluster by accident, groups for xdist, time per tier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
GOLDEN = FOLDER / "golden"
QUICK = ("unit", "golden")
"""Tiers whose tests share nothing: xdist may give each to any worker."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden")


def tier_of(nodeid: str) -> str:
    """The folder of ``tests`` that a test lies in."""
    return nodeid.split("/")[1]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the slow tests of a module in one xdist worker: they share its fixtures."""
    for item in items:
        grouped = item.get_closest_marker("xdist_group")
        if not grouped and tier_of(item.nodeid) not in QUICK:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what each tier cost; with several workers that is more than the time that passed."""
    seconds, tests = Counter[str](), Counter[str]()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[tier_of(report.nodeid)] += report.duration
                tests[tier_of(report.nodeid)] += report.when == "call"
    for tier, spent_s in seconds.most_common():
        terminalreporter.write_line(f"{tier:<12} {spent_s:7.0f} s in {tests[tier]} tests")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with a file of tests/golden, or write it there with --update-golden."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is missing; pytest --update-golden writes it"
        assert text == path.read_text(encoding="utf-8")

    return compare


@pytest.fixture(autouse=True)
def _no_cluster_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ORCHESTRATOR_CLUSTER", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
