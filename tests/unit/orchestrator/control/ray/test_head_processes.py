"""Whose processes are ended; that all of a head's are needs a Ray cluster (`autoscaling.py`)."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from orchestrator.control.ray.head_processes import kill_head, require_here
from orchestrator.errors import RequestError
from orchestrator.ledger.lease import Process


def test_a_supervisor_on_another_machine_says_where_the_head_is() -> None:
    here = Process.current()
    require_here("small", here)
    with pytest.raises(RequestError, match=r"small: --kill head ends .* run it on h7$"):
        require_here("small", dataclasses.replace(here, host="h7/boot"))


def test_nothing_is_ended_where_no_head_has_started_the_supervisor() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        supervisor = Process.of(child.pid)
        with pytest.raises(RequestError, match="no job of a head here"):
            kill_head(supervisor)
        assert child.poll() is None
        child.communicate(b"\n")
    with pytest.raises(RequestError, match="no job of a head here"):
        kill_head(supervisor)
