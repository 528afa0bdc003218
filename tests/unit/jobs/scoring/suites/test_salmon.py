from __future__ import annotations

from pathlib import Path

import pytest

from jobs.scoring.suites import open_suite
from jobs.scoring.suites.salmon import TASKS
from jobs.scoring.suites.scores import score_suite
from orchestrator.errors import DataError, RequestError
from tests.unit.jobs.scoring.suites.material import write_wavs


def salmon(folder: Path, num_samples: int = 12) -> Path:
    """The negative of each third sample has another number than 1."""
    for task in TASKS:
        names = [f"sample_{i}_{j}" for i in range(num_samples) for j in (0, 2 if i % 3 else 1)]
        write_wavs(folder / task, names)
    return folder


@pytest.mark.parametrize("below", [".", "salmon_benchmark"])
def test_each_task_has_its_own_number(tmp_path: Path, below: str) -> None:
    salmon(tmp_path / below)
    suite = open_suite("salmon", tmp_path)
    log_probs = dict.fromkeys(suite.files, -1.0)
    for pair in suite.pairs:
        assert pair.positive.endswith("_0")
        if pair.item in ("bg_alignment/3", "rir_consistency/10", "rir_consistency/11"):
            log_probs[pair.negative] = -2.0
    document = score_suite(suite, log_probs, bootstrap_samples=100, seed=0)
    found = {f["name"]: f["value"] for f in document["splits"]["all"]["figures"]}
    assert list(found) == list(TASKS)
    expected = dict.fromkeys(TASKS, 0.5) | {"bg_alignment": 6.5 / 12, "rir_consistency": 7 / 12}
    assert found == pytest.approx(expected)


def test_missing_tasks_are_named(tmp_path: Path) -> None:
    salmon(tmp_path)
    for file in (tmp_path / "bg_alignment").iterdir():
        file.unlink()
    (tmp_path / "bg_alignment").rmdir()
    with pytest.raises(RequestError, match="holds no bg_alignment; get it from github"):
        open_suite("salmon", tmp_path)


def test_a_sample_without_its_positive_is_named(tmp_path: Path) -> None:
    (salmon(tmp_path) / "bg_alignment/sample_4_0.wav").unlink()
    with pytest.raises(DataError, match=r"^bg_alignment/sample_4_2.wav: sample 4 is to be two fil"):
        open_suite("salmon", tmp_path)


def test_a_file_of_another_name_is_named(tmp_path: Path) -> None:
    write_wavs(salmon(tmp_path) / "bg_alignment", ["example"])
    with pytest.raises(DataError, match=r"^bg_alignment/example.wav: is not called sample_"):
        open_suite("salmon", tmp_path)
