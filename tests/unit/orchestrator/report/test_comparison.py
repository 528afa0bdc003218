"""The page that compares runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import RequestError
from orchestrator.report.comparison import write_comparison
from tests.unit.orchestrator.report.conftest import Ledger
from tests.unit.orchestrator.report.test_across import EASY, run_of
from tests.unit.orchestrator.report.test_page import words_of


def compared(ledgers: list[Ledger], target: Path) -> str:
    runs = [(ledger.run, ledger.store, ledger.observed) for ledger in ledgers]
    assert write_comparison(runs, target) == str(target)
    return target.read_text()


def test_two_runs_lie_side_by_side(tmp_path: Path) -> None:
    ours = run_of(tmp_path / "a", "a", EASY)
    theirs = run_of(tmp_path / "b", "b", [nll + 1 for nll in EASY], seed=3)
    page = compared([ours, theirs], tmp_path / "comparison.html")
    words = words_of(page)
    for text in (
        "2 runs compared",
        f"{theirs.run.name} against {ours.run.name}: worse than the first: perplexity 10.5 %",
        "100 units, 27.9 tokens/s",
        "14.10 [13.70, 14.50]",
        "74.09 [1.00, 2.00]",
        "+0.100 [+0.100, +0.100] nats per token",
        "seed 0 3",
        "training, median tokens/s 256 256",
    ):
        assert text in words
    assert page.count('<figure class="figure curves"') == 1
    ids = [part.split('"')[0] for part in page.split(' id="')[1:]]
    assert len(ids) == len(set(ids))


def test_a_target_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    ledgers = [run_of(tmp_path / name, name) for name in ("a", "b")]
    runs = [(ledger.run, ledger.store, ledger.observed) for ledger in ledgers]
    with pytest.raises(RequestError, match="cannot be written"):
        write_comparison(runs, tmp_path / "missing" / "page.html")
