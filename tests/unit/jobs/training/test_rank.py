from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jobs.training.process_ranks import meet
from jobs.training.rank import free_port, last_lines
from orchestrator.errors import ExitCode
from orchestrator.ledger.lease import Process


def test_ranks_meet_through_a_file(tmp_path: Path) -> None:
    path, met = tmp_path / "rendezvous.json", []
    waiting = threading.Thread(target=lambda: met.append(meet(path, leads=False)))
    waiting.start()
    led = meet(path, leads=True)
    waiting.join()
    assert met == [led]


def test_ranks_do_not_wait_for_ever(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="rank 0 did not say where it listens"):
        meet(tmp_path / "rendezvous.json", leads=False, timeout_s=0.0)


def test_a_rank_ends_with_its_driver() -> None:
    driver = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process = Process.of(driver.pid)
    told = json.dumps({"host": process.host, "pid": process.pid, "started_at": process.started_at})
    code = (
        "import json, sys, time; from jobs.training.rank import end_with;"
        "from orchestrator.ledger.lease import Process;"
        "end_with(Process(**json.loads(sys.argv[1])));"
        "print('watching', flush=True); time.sleep(60)"
    )
    rank = subprocess.Popen(
        [sys.executable, "-c", code, told], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert rank.stdout
    assert rank.stdout.readline() == b"watching\n"
    driver.kill()
    driver.wait()
    _, complaint = rank.communicate(timeout=10)
    assert rank.returncode == ExitCode.ORPHANED
    assert complaint == b"the driver of this training is gone; leaving\n"


def test_last_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a\nb\nc\n")
    assert last_lines(tmp_path / "log", 2) == "b\nc"
    assert last_lines(tmp_path / "none") == "(no log was written)"


def test_free_port_can_be_listened_on() -> None:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", free_port()))
