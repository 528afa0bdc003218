"""Published rows: complete, in percent, and called what they are."""

from __future__ import annotations

from orchestrator.report.published import SUITES, SYSTEMS
from tests.unit.orchestrator.report.conftest import Ledger
from tests.unit.orchestrator.report.test_page import words_of


def test_every_score_is_a_percentage_of_a_suite_that_is_shown() -> None:
    for row in SYSTEMS:
        assert set(row.percents) <= set(SUITES)
        assert all(50 < percent < 100 for percent in row.percents.values())
        assert len(row.cells) == len(SUITES)


def test_every_score_is_the_papers() -> None:
    """sWUGGY of all words and in vocabulary, sBLIMP, sSC, tSC; 73.9 is the 7B model's sWUGGY."""
    assert {row.system: " ".join(row.cells) for row in SYSTEMS} == {
        "TWIST-350M, warm": "- - 56.2 - -",
        "TWIST-1.3B, cold": "- - 56.5 - -",
        "TWIST-1.3B, warm": "- - 57.0 52.4 70.6",
        "TWIST-7B, warm": "- - 59.0 55.3 74.1",
        "TWIST-13B, warm": "74.5 84.1 59.2 55.4 76.4",
        "people": "- - - 79.9 90.2",
    }


def test_warm_is_above_cold_of_the_same_size_as_the_paper_has_it() -> None:
    by_name = {row.system: row.percents for row in SYSTEMS}
    cold, warm = by_name["TWIST-1.3B, cold"]["sBLIMP"], by_name["TWIST-1.3B, warm"]["sBLIMP"]
    assert (cold, warm) == (56.5, 57.0)


def test_the_page_says_that_they_are_not_its_own(untouched: tuple[Ledger, str]) -> None:
    words = words_of(untouched[1])
    assert "Published scores, for reference: not measured here" in words
    assert "arXiv 2305.13009" in words
    assert "TWIST-13B, warm 74.5 84.1 59.2 55.4 76.4" in words
    assert words.count("not measured here") >= 2
