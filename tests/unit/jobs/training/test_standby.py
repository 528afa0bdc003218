"""Ranks forked by a process that stays, as their driver sees them."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from jobs.training.forked_rank import ForkedRank, fork_rank

SCRIPT = """\
import json, os, sys
from jobs.training.standby import Standby
standby = Standby(sys.argv[1])
standby.import_first(("json",))
request = standby.serve()
request.become()
exec(json.loads(request.config)["code"])
"""


class Running:
    """A standby whose ranks are some Python code."""

    def __init__(self) -> None:
        self.address = secrets.token_hex(8)
        self.process = subprocess.Popen([sys.executable, "-c", SCRIPT, self.address])

    def ask(
        self, code: str, *, device: str = "", task: str = "json", **env: str
    ) -> ForkedRank | None:
        config = json.dumps({"code": code, "device": device, "task": f"{task}:Task"})
        return fork_rank(config, {**os.environ, **env}, self.address)

    def fork(self, code: str, **env: str) -> ForkedRank:
        rank = self.ask(code, **env)
        assert rank
        return rank


@pytest.fixture(scope="module")
def standby() -> Iterator[Running]:
    running = Running()
    yield running
    running.process.kill()
    running.process.wait()


def await_true(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def written(path: Path) -> str:
    await_true(path.exists)
    await_true(path.read_text)
    return path.read_text()


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


def test_a_rank_has_the_environment_and_folder_that_it_was_asked_for_with(
    standby: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rank = standby.fork("open('said', 'w').write(os.environ['RANK'])", RANK="3")
    assert rank.wait(60) == 0
    assert (tmp_path / "said").read_text() == "3"


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_a_warning_to_the_whole_job_leaves_it_to_the_ranks(standby: Running, number: int) -> None:
    rank = standby.fork("import time; time.sleep(600)")
    standby.process.send_signal(number)
    assert standby.fork("pass").wait(60) == 0
    assert rank.poll() is None
    rank.send_signal(number)  # it begins with what a new process does about it
    assert rank.wait(60) in (-number, 1)


def test_ranks_are_lost_with_their_standby() -> None:
    running = Running()
    rank = running.fork(
        "import time\nparent = os.getppid()\nwhile os.getppid() == parent: time.sleep(0.1)"
    )
    running.process.kill()
    running.process.wait()
    assert rank.wait(60) == -signal.SIGKILL
    assert fork_rank("{}", {}, running.address, listens_within_s=0) is None


def test_what_it_cannot_import_is_left_to_others(standby: Running) -> None:
    assert standby.ask("pass", task="no_such_module") is None
    assert standby.fork("pass").wait(60) == 0


@pytest.mark.parametrize("words", [b"", b"\n", b"junk\n", b"{}\n"])
def test_what_is_no_request_is_passed_over(standby: Running, words: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"\0{standby.address}")
        connection.sendall(words)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert standby.fork("pass").wait(60) == 0


def test_without_one_nothing_is_forked() -> None:
    assert fork_rank("{}", {}, "") is None
    assert fork_rank("{}", {}, "nobody-listens-here", listens_within_s=0) is None
