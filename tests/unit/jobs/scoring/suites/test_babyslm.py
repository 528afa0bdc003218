from __future__ import annotations

from pathlib import Path

import pytest

from jobs.scoring.suites import open_suite
from jobs.scoring.suites.scores import score_suite
from jobs.scoring.suites.tables import tables
from orchestrator.errors import DataError
from tests.unit.jobs.scoring.suites.material import (
    LEXICAL,
    SYNTACTIC,
    baby_rows,
    log_probs_of,
    syntactic_rows,
    write_gold,
    write_part,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_part(tmp_path / "lexical/dev", LEXICAL, baby_rows())
    write_part(tmp_path / "syntactic/dev", SYNTACTIC, syntactic_rows())
    return tmp_path


def test_words_average_non_words_in_a_voice_before_voices(folder: Path) -> None:
    suite = open_suite("babyslm", folder)
    log_probs = log_probs_of(suite.files)
    document = score_suite(suite, log_probs, bootstrap_samples=100, seed=0)
    figures = {f["name"]: f for f in document["splits"]["dev"]["figures"]}
    of_voices: dict[tuple[str, str], list[float]] = {}
    rows = iter(baby_rows())
    for word, non_word in zip(rows, rows, strict=True):
        good = log_probs[f"dev/lexical/{word['filename']}"]
        bad = log_probs[f"dev/lexical/{non_word['filename']}"]
        won = 0.5 * (good == bad) + (good > bad)
        of_voices.setdefault((word["phones"], word["voice"]), []).append(won)
    of_words: dict[str, list[float]] = {}
    for (phones, _), won in of_voices.items():
        of_words.setdefault(phones, []).append(sum(won) / len(won))
    means = [sum(v) / len(v) for v in of_words.values()]
    assert figures["lexical"]["value"] == pytest.approx(sum(means) / len(means))
    assert figures["lexical"]["num_pairs"] == len(means)
    assert figures["syntactic"]["num_pairs"] == 22
    assert {f["table"] for f in figures.values()} == {"", "frequency", "length", "type"}


def test_a_words_file_may_stand_in_many_rows_and_is_scored_once(folder: Path) -> None:
    suite = open_suite("babyslm", folder)
    positives = [p.positive for p in suite.pairs if p.groups["task"] == "lexical"]
    assert len(set(positives)) < len(positives)
    assert len(suite.files_of("dev")) == len(suite.files)


def test_one_task_alone_is_a_suite_too(tmp_path: Path) -> None:
    write_part(tmp_path / "syntactic/dev", SYNTACTIC, syntactic_rows())
    suite = open_suite("babyslm", tmp_path)
    assert set(tables(suite, log_probs_of(suite.files))) == {
        "overall_accuracy_syntactic_dev.txt",
        "score_syntactic_dev_by_pair.csv",
        "score_syntactic_dev_by_type.csv",
    }


def test_a_word_without_a_name_is_named(tmp_path: Path) -> None:
    rows = baby_rows()
    rows[0]["phones"] = ""
    write_part(tmp_path / "lexical/dev", LEXICAL, rows)
    write_gold(tmp_path / "lexical/dev/gold.csv", LEXICAL, rows)
    with pytest.raises(DataError, match=r"^lexical/dev/gold.csv: row 2: phones is empty"):
        open_suite("babyslm", tmp_path)
