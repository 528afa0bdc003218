from __future__ import annotations

import random
from pathlib import Path

import pytest

from jobs.scoring.suites import open_suite
from jobs.scoring.suites.scores import score_suite
from jobs.scoring.suites.suite import Suite
from orchestrator.errors import DataError, RequestError
from tests.unit.jobs.scoring.suites.material import (
    FREQUENCIES,
    LEXICAL,
    lexical_rows,
    log_probs_of,
    write_gold,
    write_part,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_part(tmp_path / "lexical/dev", LEXICAL, lexical_rows())
    return tmp_path


def values(suite: Suite, log_probs: dict[str, float]) -> dict[str, float]:
    document = score_suite(suite, log_probs, bootstrap_samples=100, seed=0)
    return {f["name"]: f["value"] for f in document["splits"]["dev"]["figures"]}


def by_hand(suite: Suite, log_probs: dict[str, float], keep: set[str]) -> float:
    """The definition: mean over voices, then over the ids whose word has a frequency to keep."""
    rows = {f"dev/{row['filename']}": row for row in lexical_rows()}
    of_id: dict[str, list[float]] = {}
    for name, row in rows.items():
        if row["correct"] == "1" and row["frequency"] in keep:
            word, non_word = log_probs[name], log_probs[name.replace("w", "n", 1)]
            won = 1.0 if word > non_word else 0.5 if word == non_word else 0.0
            of_id.setdefault(row["id"], []).append(won)
    means = [sum(won) / len(won) for won in of_id.values()]
    return sum(means) / len(means)


def test_means_are_over_voices_and_then_over_ids(folder: Path) -> None:
    suite = open_suite("swuggy", folder)
    log_probs = log_probs_of(suite.files)
    found = values(suite, log_probs)
    assert found["all"] == pytest.approx(by_hand(suite, log_probs, set(FREQUENCIES)))
    in_vocabulary = set(FREQUENCIES) - {"0"}
    assert found["in vocabulary"] == pytest.approx(by_hand(suite, log_probs, in_vocabulary))


@pytest.mark.parametrize(
    ("band", "frequencies"),
    [
        ("0", {"0"}),
        ("1-4", {"1", "4"}),
        ("5-19", {"5", "6", "19"}),
        ("20-99", {"20", "21", "99"}),
        ("100 and more", {"100", "101"}),
    ],
)
def test_bands_have_the_official_edges(folder: Path, band: str, frequencies: set[str]) -> None:
    suite = open_suite("swuggy", folder)
    log_probs = log_probs_of(suite.files)
    expected = by_hand(suite, log_probs, frequencies)
    assert values(suite, log_probs)[f"frequency {band}"] == pytest.approx(expected)


def test_the_order_of_gold_changes_nothing(folder: Path) -> None:
    suite = open_suite("swuggy", folder)
    log_probs = log_probs_of(suite.files)
    rows = lexical_rows()
    random.Random(1).shuffle(rows)
    write_gold(folder / "lexical/dev/gold.csv", LEXICAL, rows)
    shuffled = open_suite("swuggy", folder)
    assert values(shuffled, log_probs) == values(suite, log_probs)
    assert shuffled.files == suite.files
    assert shuffled.fingerprint != suite.fingerprint


def test_the_fingerprint_knows_gold_names_and_sizes(folder: Path) -> None:
    first = open_suite("swuggy", folder).fingerprint
    assert open_suite("swuggy", folder).fingerprint == first
    (folder / "lexical/dev/w0A.wav").write_bytes(b"longer than it was")
    assert open_suite("swuggy", folder).fingerprint != first


def test_the_folder_may_be_the_lexical_one(folder: Path) -> None:
    suite = open_suite("swuggy", folder / "lexical")
    assert suite.splits == ("dev",)
    assert suite.files["dev/w0A"] == "dev/w0A.wav"


def test_a_test_split_without_gold_has_files_alone(folder: Path) -> None:
    (folder / "lexical/test").mkdir()
    (folder / "lexical/test/opaque.wav").write_bytes(b"RIFF")
    suite = open_suite("swuggy", folder)
    document = score_suite(suite, log_probs_of(suite.files), bootstrap_samples=100, seed=0)
    assert suite.files_of("test") == ["test/opaque"]
    assert document["splits"]["test"]["figures"] == []
    assert document["splits"]["test"]["num_utterances"] == 1


def test_words_are_shown_by_phones_where_no_non_word_is_spelt(tmp_path: Path) -> None:
    write_part(tmp_path / "lexical/dev", LEXICAL, lexical_rows(spelt=False))
    assert open_suite("swuggy", tmp_path).pairs[0].texts == ("w 0", "n 0")


def test_a_folder_without_it_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"holds no lexical/dev.*zrc datasets:pull") as error:
        open_suite("swuggy", tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_wav_is_named(folder: Path) -> None:
    (folder / "lexical/dev/n3A.wav").unlink()
    with pytest.raises(DataError, match=r"^lexical/dev/gold.csv: row \d+: there is no n3A.wav"):
        open_suite("swuggy", folder)


def test_a_wav_without_a_row_is_named(folder: Path) -> None:
    (folder / "lexical/dev/stray.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"^lexical/dev/stray.wav: has no row in lexical/dev/gold"):
        open_suite("swuggy", folder)


def test_hidden_files_are_no_audio(folder: Path) -> None:
    (folder / "lexical/dev/._w0A.wav").write_bytes(b"RIFF")
    assert "dev/._w0A" not in open_suite("swuggy", folder).files


def edited(folder: Path, change: dict[str, str], row: int = 1) -> Path:
    rows = lexical_rows()
    rows[row] |= change
    write_gold(folder / "lexical/dev/gold.csv", LEXICAL, rows)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filename": "w0A"}, r"row 3: w0A is in row 2 already"),
        ({"correct": "yes"}, r"row 3: correct is 'yes', not 0 or 1"),
        ({"id": "77"}, r"row \d+: \d correct and \d incorrect of id \d+, voice A"),
    ],
)
def test_an_odd_row_is_named(folder: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=rf"^lexical/dev/gold.csv: {message}"):
        open_suite("swuggy", edited(folder, change))


def test_a_word_of_unknown_frequency_is_in_no_band(folder: Path) -> None:
    """The official scorer ends with an error there; `all` and its length are known all the same."""
    suite = open_suite("swuggy", edited(folder, {"frequency": ""}, row=0))
    document = score_suite(suite, log_probs_of(suite.files), bootstrap_samples=100, seed=0)
    sizes = {f["name"]: f["num_pairs"] for f in document["splits"]["dev"]["figures"]}
    assert (sizes["all"], sizes["frequency 0"], sizes["length 3"]) == (24, 2, 5)


def test_a_frequency_that_is_no_count_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"row 2: frequency is '1.5', no whole number"):
        open_suite("swuggy", edited(folder, {"frequency": "1.5"}, row=0))
