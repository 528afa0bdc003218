from __future__ import annotations

from pathlib import Path

from jobs.scoring.suites import open_suite
from tests.unit.jobs.scoring.suites.material import write_wavs


def test_its_folder_in_a_folder_of_both_is_the_one_read(tmp_path: Path) -> None:
    write_wavs(tmp_path / "sSC", ["0_a_correct", "1_a_incorrect"])
    write_wavs(tmp_path / "tSC", ["0_b_correct", "1_b_incorrect"])
    suite = open_suite("ssc", tmp_path)
    assert (suite.kind, suite.name, list(suite.items("all"))) == ("ssc", "sSC", ["a"])
