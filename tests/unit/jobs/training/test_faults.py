"""Drills strike whom they name, where they name it, and nobody else."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from jobs.training import faults

Drill = Callable[..., None]


@pytest.fixture
def drill(monkeypatch: pytest.MonkeyPatch) -> Drill:
    def order(**fault: object) -> None:
        monkeypatch.setenv(faults.VARIABLE, json.dumps(fault))

    return order


def test_without_a_drill_nothing_happens() -> None:
    faults.passing("commit.manifest", rank=0, step=8)
    faults.uploading(1 << 40)
    assert not faults.poisoned(np.arange(8))
    assert not faults.stalls(rank=0, step=8)


@pytest.mark.parametrize(
    ("rank", "step", "point"), [(1, 8, "save.begin"), (0, 9, "save.begin"), (0, 8, "save.staged")]
)
def test_another_rank_step_or_point_is_passed(
    drill: Drill, rank: int, step: int, point: str
) -> None:
    drill(kind="kill", point="save.begin", rank=0, step=8)
    faults.passing(point, rank=rank, step=step)


@pytest.mark.parametrize("victim", ["rank", "driver"])
def test_the_victim_is_killed(victim: str) -> None:
    fault = {"kind": "kill", "point": "save.begin", "rank": 0, "step": 8, "victim": victim}
    driver = subprocess.Popen(["sleep", "60"])
    code = (
        "import sys; from jobs.training import faults;"
        "faults.passing('save.begin', rank=0, step=8, driver_pid=int(sys.argv[1]))"
    )
    rank = subprocess.Popen(
        [sys.executable, "-c", code, str(driver.pid)], env={faults.VARIABLE: json.dumps(fault)}
    )
    try:
        struck = rank if victim == "rank" else driver
        assert struck.wait(30) == -signal.SIGKILL
        other = driver if victim == "rank" else rank
        assert other.poll() is None, "it was not meant"
    finally:
        for process in (rank, driver):
            process.kill()
            process.wait()


def test_a_poisoned_position_poisons_its_batch(drill: Drill) -> None:
    drill(kind="nan", positions=[5])
    assert faults.poisoned(np.arange(8))
    assert not faults.poisoned(np.arange(6, 14))


def test_a_rank_stalls_at_its_step(drill: Drill) -> None:
    drill(kind="hang", rank=1, step=3)
    assert faults.stalls(rank=1, step=3)
    assert not faults.stalls(rank=0, step=3)
    assert not faults.stalls(rank=1, step=4)


def test_a_slow_store_takes_its_time(drill: Drill) -> None:
    drill(kind="slow_store", mb_per_s=10.0)
    started = time.monotonic()
    faults.uploading(1_000_000)
    assert time.monotonic() - started >= 0.1


def test_a_broken_store_takes_nothing_more() -> None:
    code = "from jobs.training import faults; faults.break_store(); faults.uploading(1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode
    assert b"the store is out of reach" in done.stderr
