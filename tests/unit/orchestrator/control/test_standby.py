"""The process that forks ranks, from its first need to its end."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.control.standby import MODULE, Standby
from orchestrator.ledger.run import STANDBY, RunFolder
from orchestrator.ledger.storage import Storage

IN_ANOTHER = f"""\
import sys, time
from pathlib import Path
from {__name__} import standby_in
print(standby_in(Path(sys.argv[1])).env()["{STANDBY}"], flush=True)
time.sleep(600)
"""


def standby_in(folder: Path) -> Standby:
    return Standby(RunFolder(Storage(str(folder / "run"))), folder / "logs" / "standby.log")


@pytest.fixture
def standby(tmp_path: Path) -> Iterator[Standby]:
    own = standby_in(tmp_path)
    yield own
    own.stop()


def process_at(address: str) -> psutil.Process | None:
    """The process that was started to listen at an address."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(STANDBY) == address and MODULE in process.cmdline():
                return process if process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            continue
    return None


def await_end(process: psutil.Process) -> None:
    deadline = time.monotonic() + 60
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "it lives"
        time.sleep(0.05)


def test_one_serves_all_attempts_and_another_once_it_is_gone(standby: Standby) -> None:
    first = standby.env()[STANDBY]
    assert standby.env()[STANDBY] == first
    process = process_at(first)
    assert process
    process.kill()
    await_end(process)
    second = standby.env()[STANDBY]
    assert second != first
    process = process_at(second)
    assert process
    standby.stop()
    await_end(process)
    standby.stop()  # for good


def test_it_ends_with_its_supervisor(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", IN_ANOTHER, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout
        process = process_at(supervisor.stdout.readline().strip())
        assert process
        supervisor.kill()
    await_end(process)
