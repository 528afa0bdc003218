from __future__ import annotations

from typing import Any

import pytest

from orchestrator.report.facts import (
    doubts,
    fact_rows,
    label,
    shown,
    split_rows,
    suite_rows,
    unit_measures,
    unit_quality,
    unit_verdict,
)

NO_BETTER = (
    "The encoder's units do not beat MFCC units: "
    "they tell no more of the phones than plain spectra do."
)


def test_scores_of_a_suite_are_in_percent_with_what_chance_gives() -> None:
    row = {"value": 0.567, "interval_95": [0.5, 0.625], "chance": 0.5, "num_pairs": 6300}
    facts = {"suite": "sBLIMP", "splits": {"dev": {"by pair": row}}}
    assert suite_rows(facts) == (("dev", "by pair", "56.7 [50.0, 62.5]", "50", "6,300"),)
    assert suite_rows({}) == ()
    alone = {**row, "interval_95": None, "num_pairs": 1}
    facts = {"suite": "sBLIMP", "splits": {"dev": {"by type": alone}}}
    assert suite_rows(facts) == (("dev", "by type", "56.7", "50", "1"),)


NO_ROW = ("cannot be read", "-", "-")


@pytest.mark.parametrize(
    "row",
    [
        None,
        [],
        {},
        {"value": "high", "interval_95": [0.5, 0.6], "chance": 0.5, "num_pairs": 1},
        {"value": 0.5, "interval_95": [0.5], "chance": 0.5, "num_pairs": 1},
        {"value": 0.5, "interval_95": [0.5, None], "chance": 0.5, "num_pairs": 1},
        {"value": 0.5, "interval_95": [0.5, 0.6], "chance": 0.5},
        {"value": 0.5, "interval_95": [0.5, 0.6], "chance": None, "num_pairs": 1},
    ],
)
def test_a_figure_of_another_form_is_a_row_that_says_so(row: Any) -> None:
    """And hides no other."""
    good = {"value": 0.5, "interval_95": [0.5, 0.6], "chance": 0.5, "num_pairs": 1}
    facts = {"splits": {"dev": {"odd": row, "good": good}}}
    assert suite_rows(facts) == (
        ("dev", "odd", *NO_ROW),
        ("dev", "good", "50.0 [50.0, 60.0]", "50", "1"),
    )


def test_splits_of_another_form_are_a_row_that_says_so() -> None:
    assert suite_rows({"splits": {"dev": [1]}}) == (("dev", "-", *NO_ROW),)
    assert suite_rows({"splits": "none"}) == (("-", "-", *NO_ROW),)
    odd = {"num_recordings": None, "num_tokens": "many", "num_samples": 16_000}
    assert split_rows({"splits": {"train": odd}}) == (("train", "0", "0", "0", "1.0 s", "0.0"),)


@pytest.mark.parametrize("facts", [{}, {"units": None, "mfcc": 3, "doubts": 7}])
def test_measures_that_are_not_there_are_none(facts: dict[str, Any]) -> None:
    assert {row[1:] for row in unit_measures(facts)} == {("none", "none")}
    assert doubts(facts) == ()


@pytest.mark.parametrize(
    ("name", "value", "row"),
    [
        ("kept_hours", 1.5, ("kept", "1 h 30 min")),
        ("audio_s", 90.0, ("audio", "1 min 30 s")),
        ("audio_s_per_s", 41.256, ("audio s/s", "41.26")),
        ("tokens_per_s", 1234.56, ("tokens/s", "1,234.6")),
        ("num_left_out", 12345, ("left out", "12,345")),
        ("model_bytes", 2_100_000, ("model", "2.1 MB")),
        ("frame_rate_hz", 12.5, ("frame rate", "12.5 Hz")),
        ("entropy_bits", 6.5712, ("entropy", "6.571 bits")),
        ("sha256", "0123456789abcdef" * 4, ("sha256", "0123456789ab")),
        ("deduplicated", True, ("deduplicated", "yes")),
        ("inertia", float("nan"), ("inertia", "nan")),
        ("why", None, ("why", "none")),
        ("langs", ["en", "fr"], ("langs", "en, fr")),
        ("many", list(range(20)), ("many", "0, 1, 2, 3, 4, 5, 6, 7, … (20 in all)")),
    ],
)
def test_a_fact_is_shown_in_the_unit_of_its_name(
    name: str, value: object, row: tuple[str, str]
) -> None:
    assert (label(name), shown(name, value)) == row


def test_nested_facts_are_joined_and_sections_can_be_left_out() -> None:
    facts = {"final": {"metrics_loss": 2.5}, "history": [{"a": 1}]}
    assert fact_rows(facts, skip=("history",)) == (("final · metrics loss", "2.5"),)


def test_splits_come_in_order_with_their_rate() -> None:
    counts = {"num_recordings": 1, "num_utterances": 2, "num_tokens": 40, "num_samples": 32_000}
    rows = split_rows({"splits": {"test": {}, "train": counts, "valid": counts}})
    assert [r[0] for r in rows] == ["train", "valid", "test"]
    assert rows[0] == ("train", "1", "2", "40", "2.0 s", "20.0")
    assert rows[2] == ("test", "0", "0", "0", "0.0 s", "-")


@pytest.mark.parametrize(
    ("encoder", "mfcc", "verdict"),
    [
        (0.42, 0.316, "The encoder's units tell more of the phones than MFCC units do."),
        (0.31, 0.316, NO_BETTER),
        (0.316, 0.316, NO_BETTER),
    ],
)
def test_whether_units_beat_mfcc_is_said_plainly(encoder: float, mfcc: float, verdict: str) -> None:
    found = unit_quality({"unit_quality": {"encoder_pnmi": encoder, "mfcc_pnmi": mfcc}})
    assert found == {"same clusters": (encoder, mfcc)}
    assert unit_verdict(found) == verdict


def test_several_conditions_have_a_row_each() -> None:
    better, worse = ({"encoder_pnmi": own, "mfcc_pnmi": 0.3} for own in (0.42, 0.2))
    quality = {"k100": better, "k50": worse, "material": "two voices"}
    found = unit_quality({"unit_quality": quality})
    assert found == {"k100": (0.42, 0.3), "k50": (0.2, 0.3)}
    assert unit_verdict(found) == ("The encoder's units beat MFCC units in 1 of 2 conditions only.")


@pytest.mark.parametrize(
    "quality",
    [
        None,
        "none",
        [1],
        {"encoder_pnmi": None, "mfcc_pnmi": 0.3},
        {"encoder_pnmi": 0.5},
        {"k50": {"encoder_pnmi": "high", "mfcc_pnmi": 0.3}},
    ],
)
def test_an_encoder_without_the_comparison_has_no_rows(quality: Any) -> None:
    assert unit_quality({"layer": 3}) == {}
    assert unit_quality({"unit_quality": quality}) == {}
