from __future__ import annotations

from pathlib import Path

import pytest

from jobs.scoring.suites import open_suite
from jobs.scoring.suites.scores import score_suite
from tests.unit.jobs.scoring.suites.material import (
    PROSODIC,
    log_probs_of,
    prosodic_rows,
    write_part,
)


@pytest.mark.parametrize("name", ["english_dev", "english/dev"])
def test_each_type_has_its_own_number(tmp_path: Path, name: str) -> None:
    write_part(tmp_path / name, PROSODIC, prosodic_rows())
    suite = open_suite("prosaudit", tmp_path)
    log_probs = log_probs_of(suite.files)
    document = score_suite(suite, log_probs, bootstrap_samples=100, seed=0)
    figures = document["splits"]["dev"]["figures"]
    assert [(f["name"], f["num_pairs"]) for f in figures] == [("lexical", 6), ("protosyntax", 4)]
    of_ids: dict[str, list[float]] = {}
    for row in prosodic_rows():
        if row["correct"] == "1" and row["type"] == "lexical":
            good = log_probs[f"dev/{row['filename']}"]
            bad = log_probs[f"dev/x{row['filename'][1:]}"]
            of_ids.setdefault(row["id"], []).append(0.5 * (good == bad) + (good > bad))
    means = [sum(v) / len(v) for v in of_ids.values()]
    assert figures[0]["value"] == pytest.approx(sum(means) / len(means))


def test_voice_and_subtype_may_be_missing(tmp_path: Path) -> None:
    rows = [row for row in prosodic_rows() if row["filename"].endswith("A")]
    header = ("filename", "id", "type", "correct")
    slim = [{name: row[name] for name in header} for row in rows]
    write_part(tmp_path / "english_test", header, slim)
    suite = open_suite("prosaudit", tmp_path)
    assert suite.splits == ("test",)
    assert len(suite.pairs) == 4 + 2 * 6
