"""Whatever is wrong with a recipe or a cluster: exit 2, one line a problem, nothing written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from tests.unit.orchestrator import broken
from tests.unit.orchestrator.broken import Broken

CASES = (
    *broken.RECIPES,
    *broken.SYNTAX,
    *broken.SETS,
    *broken.OLD_FORMS,
    *broken.SLIPS,
    *broken.CLUSTERS,
    *broken.MOVING,
)
UNFIT = (*broken.UNFIT, *broken.SURROUNDINGS, *broken.TOO_LARGE)
"""What is only known once there is a plan, which is shown with it."""


# Submitting is what must not happen; planning reads the same files, so a sample is enough.
REQUESTS = (
    *(("submit", case) for case in (*CASES, *UNFIT)),
    *(("plan", case) for case in (*CASES[::10], *broken.MOVING)),
)


@pytest.mark.parametrize(
    ("verb", "case"), REQUESTS, ids=[f"{verb}-{case.id}" for verb, case in REQUESTS]
)
def test_says_what_is_wrong_and_writes_nothing(
    verb: str, case: Broken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = case.write(tmp_path)
    before = sorted(tmp_path.rglob("*"))

    assert main([verb, *words]) == 2

    said = capsys.readouterr()
    chosen = f"cluster: {tmp_path}/c.yaml (given by --cluster)\n" if case.names_cluster else ""
    expected = [line.replace("{folder}", str(tmp_path)) for line in case.says]
    assert said.err == chosen + "".join(f"{line}\n" for line in expected)
    assert said.out == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("case", UNFIT[::4], ids=lambda case: case.id)
def test_a_plan_says_what_submit_would_refuse(
    case: Broken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *case.write(tmp_path)]) == 0
    lines = capsys.readouterr().err.replace(str(tmp_path), "{folder}").splitlines()[1:]
    assert lines == [f"submit would refuse: {line}" for line in case.says]


def test_the_request_that_the_cases_break_is_sound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *broken.SOUND.write(tmp_path)]) == 0
    assert "run small-" in capsys.readouterr().out


def test_every_line_names_a_file_or_an_option() -> None:
    lines = [line for case in (*CASES, *UNFIT) for line in case.says]
    starts = (
        "r.yaml",
        "s.yaml",
        "c.yaml",
        "{folder}/",
        "--set ",
        "cluster: ",
        "store ",
        "this Python: ",
    )
    assert [line for line in lines if not line.startswith(starts)] == []
    assert len({case.id for case in (*CASES, *UNFIT)}) == len(CASES) + len(UNFIT) >= 30


def test_as_a_process_without_a_traceback(tmp_path: Path) -> None:
    case = next(c for c in CASES if c.id == "python apply")
    words = case.write(tmp_path)
    argv = [sys.executable, "-m", "orchestrator.cli.main", "submit", *words]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == list(case.says)
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "store").exists()
