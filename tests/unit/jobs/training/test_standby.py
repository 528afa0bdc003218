"""What a process that forks ranks does of itself, and what it passes over."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from tests.unit.jobs.training.standbys import Running, standby

__all__ = ["standby"]


def test_a_rank_has_the_environment_and_folder_that_it_was_asked_for_with(
    standby: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rank = standby.fork("open('said', 'w').write(os.environ['RANK'])", RANK="3")
    assert rank.wait(60) == 0
    assert (tmp_path / "said").read_text() == "3"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_a_warning_to_the_whole_job_leaves_it_to_the_ranks(standby: Running, number: int) -> None:
    rank = standby.fork("import time; time.sleep(600)")
    standby.process.send_signal(number)
    assert standby.fork("pass").wait(60) == 0
    assert rank.poll() is None
    rank.send_signal(number)  # it begins with what a new process does about it
    assert rank.wait(60) in (-number, 1)


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
