"""The tables against the public scorer's own, byte for byte.

``golden/`` holds what zerospeech-benchmarks 0.9.4 (with pandas 2.0.3) wrote of the suites of
`material`. To see it again, make an environment with ``pip install zerospeech-benchmarks==0.9.4
'pandas<2.1' 'numpy<2' 'pydantic<2'`` and let ORCHESTRATOR_TEST_ZEROSPEECH name its Python; with
``--update-golden`` the files are written anew. ``golden/children`` is what the scripts of
github.com/MarvinLvn/BabySLM (scripts/metrics/compute_lexical.py and compute_syntactic.py) wrote,
with the same pandas, of BabySLM's suite of `material`.
"""

from __future__ import annotations

import csv
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.scoring.suites import open_suite
from jobs.scoring.suites.scores import score_suite
from jobs.scoring.suites.suite import Suite
from jobs.scoring.suites.tables import tables
from tests.unit.jobs.scoring.suites.material import (
    LEXICAL,
    PROSODIC,
    SYNTACTIC,
    Rows,
    baby_rows,
    lexical_rows,
    log_probs_of,
    prosodic_rows,
    syntactic_rows,
    write_part,
)

GOLDEN = Path(__file__).parent / "golden"
SCORER = os.environ.get("ORCHESTRATOR_TEST_ZEROSPEECH", "")

CASES: dict[str, tuple[str, str, tuple[str, ...], Callable[[], Rows]]] = {
    "spelt": ("swuggy", "lexical", LEXICAL, lexical_rows),
    "unspelt": ("swuggy", "lexical", LEXICAL, lambda: lexical_rows(spelt=False)),
    "sentences": ("sblimp", "syntactic", SYNTACTIC, syntactic_rows),
    "pauses": ("prosaudit", "prosodic", PROSODIC, prosodic_rows),
}
FOLDERS = {"prosodic": "english"}


def opened(case: str, folder: Path) -> tuple[Suite, dict[str, float]]:
    kind, task, header, rows = CASES[case]
    write_part(folder / FOLDERS.get(task, task) / "dev", header, rows())
    suite = open_suite(kind, folder)
    return suite, log_probs_of(suite.files)


@pytest.mark.parametrize("case", CASES)
def test_tables_are_the_public_scorers(case: str, tmp_path: Path) -> None:
    found = tables(*opened(case, tmp_path))
    golden = {path.name: path.read_text() for path in (GOLDEN / case).glob("*.csv")}
    assert found == golden


def test_tables_are_those_of_babyslms_scripts(tmp_path: Path) -> None:
    write_part(tmp_path / "lexical/dev", LEXICAL, baby_rows())
    write_part(tmp_path / "syntactic/dev", SYNTACTIC, syntactic_rows())
    suite = open_suite("babyslm", tmp_path)
    found = tables(suite, log_probs_of(suite.files))
    assert found == {path.name: path.read_text() for path in (GOLDEN / "children").iterdir()}


@pytest.mark.skipif(not SCORER, reason="ORCHESTRATOR_TEST_ZEROSPEECH names no Python")
@pytest.mark.parametrize("case", CASES)
def test_the_public_scorer_writes_the_golden_tables(
    case: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    _, log_probs = opened(case, tmp_path)
    _, task, *_ = CASES[case]
    submission = tmp_path / "dev.txt"
    lines = (f"{name.removeprefix('dev/')} {value}\n" for name, value in log_probs.items())
    submission.write_text("".join(lines))
    update = request.config.getoption("--update-golden")
    out = GOLDEN / case if update else tmp_path / "out"
    out.mkdir(exist_ok=True, parents=True)
    gold = tmp_path / FOLDERS.get(task, task) / "dev/gold.csv"
    command = [SCORER, str(Path(__file__).with_name("official.py")), task, str(gold)]
    name = f"score_{'_'.join((task, *FOLDERS.get(task, '').split()))}_dev_by_{{}}.csv"
    subprocess.run([*command, str(submission), name, str(out)], check=True, capture_output=True)
    found = {path.name: path.read_text() for path in out.glob("*.csv")}
    assert found == {path.name: path.read_text() for path in (GOLDEN / case).glob("*.csv")}


def column(case: str, by: str, name: str) -> list[str]:
    (file,) = (GOLDEN / case).glob(f"*by_{by}.csv")
    with file.open(newline="") as rows:
        return [row[name] for row in csv.DictReader(rows)]


def test_figures_are_those_of_the_public_tables(tmp_path: Path) -> None:
    """As its leaderboard reads them from its tables, which have four decimals."""
    document = score_suite(*opened("spelt", tmp_path), bootstrap_samples=100, seed=0)
    figures = {f["name"]: f["value"] for f in document["splits"]["dev"]["figures"]}
    scores = [float(score) for score in column("spelt", "pair", "score")]
    assert figures["all"] == pytest.approx(sum(scores) / len(scores), abs=5e-5)
    bands = zip(
        *(column("spelt", "frequency", c) for c in ("frequency", "n", "score")), strict=True
    )
    known = [(int(n), float(score)) for band, n, score in bands if band != "oov"]
    in_vocabulary = sum(n * score for n, score in known) / sum(n for n, _ in known)
    assert figures["in vocabulary"] == pytest.approx(in_vocabulary, abs=5e-5)


def test_both_numbers_called_sblimp_are_those_of_the_public_tables(tmp_path: Path) -> None:
    document = score_suite(*opened("sentences", tmp_path), bootstrap_samples=100, seed=0)
    figures = {f["name"]: f["value"] for f in document["splits"]["dev"]["figures"]}
    for name, by in (("by pair", "pair"), ("by type", "type")):
        scores = [float(score) for score in column("sentences", by, "score")]
        assert figures[name] == pytest.approx(sum(scores) / len(scores), abs=5e-5)
