"""Ranks forked by a process that stays, as their driver sees them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from jobs.training.forked_rank import fork_rank
from tests.unit.jobs.training.standbys import Running, standby, written

__all__ = ["standby"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", 0),
        ("sys.exit(7)", 7),
        ("raise RuntimeError('no')", 1),
        ("os.kill(os.getpid(), 9)", -9),
        ("os._exit(75)", 75),
    ],
)
def test_an_end_is_told_as_it_was(standby: Running, code: str, expected: int) -> None:
    rank = standby.fork(code)
    assert rank.wait(60) == expected
    assert rank.poll() == expected


def test_ranks_run_at_the_same_time_and_each_gets_its_own_signals(
    standby: Running, tmp_path: Path
) -> None:
    code = "import time; open(os.environ['F'], 'w').write(str(os.getpid())); time.sleep(600)"
    first, second = (standby.fork(code, F=str(tmp_path / name)) for name in "ab")
    written(tmp_path / "a"), written(tmp_path / "b")
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == -signal.SIGTERM
    assert second.poll() is None
    second.send_signal(signal.SIGKILL)
    assert second.wait(60) == -signal.SIGKILL
    first.send_signal(signal.SIGTERM)  # nobody is there to get it


def test_a_rank_does_not_outlive_whoever_asked_for_it(standby: Running, tmp_path: Path) -> None:
    code = "import time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
    asks = (
        "import json, os, sys; from jobs.training.forked_rank import fork_rank\n"
        f"os.chdir({str(tmp_path)!r})\n"
        f"config = json.dumps({{'code': {code!r}, 'device': '', 'task': 'json'}})\n"
        f"fork_rank(config, os.environ, {standby.address!r}).wait()"
    )
    with subprocess.Popen([sys.executable, "-c", asks]) as driver:
        rank = psutil.Process(int(written(tmp_path / "pid")))
        assert rank.ppid() == standby.process.pid
        driver.kill()
    rank.wait(60)


def test_ranks_are_lost_with_their_standby() -> None:
    running = Running()
    rank = running.fork(
        "import time\nparent = os.getppid()\nwhile os.getppid() == parent: time.sleep(0.1)"
    )
    running.process.kill()
    running.process.wait()
    assert rank.wait(60) == -signal.SIGKILL
    assert fork_rank("{}", {}, running.address, listens_within_s=0) is None


def test_without_one_nothing_is_forked() -> None:
    assert fork_rank("{}", {}, "") is None
    assert fork_rank("{}", {}, "nobody-listens-here", listens_within_s=0) is None
