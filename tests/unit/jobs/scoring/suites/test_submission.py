from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jobs.scoring.suites import open_suite
from jobs.scoring.suites.submission import About, submission
from orchestrator.errors import DataError
from tests.unit.jobs.scoring.suites.material import (
    LEXICAL,
    PROSODIC,
    SYNTACTIC,
    baby_rows,
    lexical_rows,
    log_probs_of,
    prosodic_rows,
    syntactic_rows,
    write_part,
    write_wavs,
)

ABOUT = About(system_description="a small model", train_set="LibriSpeech")


def test_every_wav_has_one_line_in_the_file_of_its_split(tmp_path: Path) -> None:
    write_part(tmp_path / "lexical/dev", LEXICAL, lexical_rows())
    write_wavs(tmp_path / "lexical/test", ["opaque"])
    write_part(tmp_path / "syntactic/dev", SYNTACTIC, syntactic_rows())
    suites = [open_suite(kind, tmp_path) for kind in ("swuggy", "sblimp")]
    scored = [(suite, log_probs_of(suite.files)) for suite in suites]
    found = submission(scored, ABOUT)
    assert sorted(found) == [
        "sLM21/lexical/dev.txt",
        "sLM21/lexical/test.txt",
        "sLM21/meta.yaml",
        "sLM21/params.yaml",
        "sLM21/syntactic/dev.txt",
    ]
    lines = dict(line.split(" ") for line in found["sLM21/lexical/dev.txt"].splitlines())
    assert set(lines) == {path.stem for path in (tmp_path / "lexical/dev").glob("*.wav")}
    assert float(lines["w3A"]) == scored[0][1]["dev/w3A"]
    assert found["sLM21/lexical/test.txt"] == f"opaque {scored[0][1]['test/opaque']}\n"


def test_what_only_the_authors_know_stays_a_placeholder(tmp_path: Path) -> None:
    """Which the official check refuses by `<.*>`, so that it is not forgotten."""
    write_part(tmp_path / "english_dev", PROSODIC, prosodic_rows())
    suite = open_suite("prosaudit", tmp_path)
    found = submission([(suite, log_probs_of(suite.files))], ABOUT)
    meta = yaml.safe_load(found["prosAudit/meta.yaml"])
    assert meta["benchmark_name"] == "prosAudit"
    assert meta["model_info"]["train_set"] == "LibriSpeech"
    assert meta["publication"]["authors"].startswith("<required")
    # The official reader (zerospeech-benchmarks' MetaFile) takes no placeholder for these two.
    assert (meta["publication"]["publication_year"], meta["open_source"]) == (0, False)
    assert found["prosAudit/english_dev.txt"].count("\n") == len(suite.files)


def test_babyslm_keeps_its_tasks_apart(tmp_path: Path) -> None:
    write_part(tmp_path / "lexical/dev", LEXICAL, baby_rows())
    write_part(tmp_path / "syntactic/dev", SYNTACTIC, syntactic_rows())
    suite = open_suite("babyslm", tmp_path)
    found = submission([(suite, log_probs_of(suite.files))], ABOUT)
    assert sorted(found) == ["babyslm/lexical/dev.txt", "babyslm/syntactic/dev.txt"]


def test_a_suite_without_a_format_gives_nothing(tmp_path: Path) -> None:
    write_wavs(tmp_path, ["0_a_correct", "1_a_incorrect"])
    suite = open_suite("ssc", tmp_path)
    assert submission([(suite, log_probs_of(suite.files))], ABOUT) == {}


def test_a_file_without_a_score_is_named(tmp_path: Path) -> None:
    write_part(tmp_path / "lexical/dev", LEXICAL, lexical_rows())
    with pytest.raises(DataError, match="utterances have none, dev/n0A first"):
        submission([(open_suite("swuggy", tmp_path), {})], ABOUT)
