from __future__ import annotations

from pathlib import Path

import pytest

from jobs.scoring.suites import open_suite
from jobs.scoring.suites.scores import score_suite
from orchestrator.errors import DataError
from tests.unit.jobs.scoring.suites.material import write_wavs

STORIES = [f"{n:02d}-a_b" for n in range(12)]


def cloze(folder: Path) -> Path:
    """As the published archives lie: numbered over both endings, 10 before 2 by name."""
    write_wavs(folder, (f"{2 * n}_{story}_correct" for n, story in enumerate(STORIES)))
    write_wavs(folder, (f"{2 * n + 1}_{story}_incorrect" for n, story in enumerate(STORIES)))
    return folder


@pytest.mark.parametrize(("kind", "below"), [("ssc", "."), ("tsc", "tSC")])
def test_endings_are_paired_by_story(tmp_path: Path, kind: str, below: str) -> None:
    cloze(tmp_path / below)
    suite = open_suite(kind, tmp_path)
    pairs = {p.item: (Path(p.positive).name, Path(p.negative).name) for p in suite.pairs}
    assert pairs == {
        story: (f"{2 * n}_{story}_correct", f"{2 * n + 1}_{story}_incorrect")
        for n, story in enumerate(STORIES)
    }
    log_probs = dict.fromkeys(suite.files, -3.0)
    for pair in suite.pairs[:5]:
        log_probs[pair.positive] = -2.0
    document = score_suite(suite, log_probs, bootstrap_samples=100, seed=0)
    (figure,) = document["splits"]["all"]["figures"]
    assert figure["value"] == pytest.approx((5 + 7 / 2) / 12)


def test_a_folder_for_each_speaker_is_a_voice(tmp_path: Path) -> None:
    cloze(tmp_path / "alice")
    cloze(tmp_path / "bob")
    suite = open_suite("ssc", tmp_path)
    assert len(suite.items("all")) == 12
    assert {pair.voice for pair in suite.pairs} == {"alice", "bob"}
    assert suite.files["bob/0_00-a_b_correct"] == "bob/0_00-a_b_correct.wav"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("24_new_correct", "24_new_correct.wav: story new has no other ending"),
        ("9_05-a_b_correct", "9_05-a_b_correct.wav: the correct ending is 10_05-a_b_correct.wav"),
        ("notes", "notes.wav: is not called <n>_<story>_correct.wav"),
    ],
)
def test_a_file_that_makes_no_pair_is_named(tmp_path: Path, name: str, message: str) -> None:
    write_wavs(cloze(tmp_path), [name])
    with pytest.raises(DataError, match=f"^{message}"):
        open_suite("ssc", tmp_path)
