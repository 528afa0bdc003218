"""What every test shares: golden files, no cluster by accident, groups for xdist, time per tier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.smoke import Smoke

FOLDER = Path(__file__).parent
GOLDEN = FOLDER / "golden"
WITHOUT_RUN = ("test_pretrain.py", "test_train.py")
"""Modules of integration tests that start what they need by themselves."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden")


def tier_of(nodeid: str) -> str:
    """The folder of ``tests`` that a test lies in."""
    return nodeid.split("/")[1]


def group_of(nodeid: str) -> str:
    """Tests of one group run in one xdist worker, in order: they share its fixtures.

    Those of integration and chaos share a local run that nobody disturbs, but for a few that do
    without it: they keep the worker busy that has less to do.
    """
    tier, module = tier_of(nodeid), nodeid.split("::")[0]
    if tier in {"unit", "golden"}:
        return module
    if module.endswith(WITHOUT_RUN):
        return "numerics"
    return tier if tier in {"slurm", "numerics", "gpu", "browser"} else "local"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling  # make gpu does without

    class ByGroup(LoadScopeScheduling):
        """Groups with more tests first. (``--dist loadgroup`` does nothing under pytest 9.2.)"""

        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return ByGroup(config, log)


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


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke recipe's audio and text model, made by whoever asks first."""
    return tmp_path_factory.mktemp("material") / "smoke"


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory, material: Path) -> Iterator[tuple[Smoke, str]]:
    """A local run of the smoke recipe that nobody disturbed, and its name."""
    from tests.smoke import Smoke  # unit tests do without what it imports

    smoke = Smoke.create(tmp_path_factory.mktemp("calm") / "s", material)
    run = smoke.submit()
    assert smoke.finish(run) == 0
    yield smoke, run
    assert smoke.wait_gone() == []


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


@pytest.fixture(autouse=True)
def _no_hub_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
