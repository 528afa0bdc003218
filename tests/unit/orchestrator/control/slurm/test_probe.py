"""A job of doctor: what it says of its node, and of the signal that it waits for."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.control.requirements import JOB_PACKAGES, num_gpus
from orchestrator.control.slurm.probe import FOUND, HEARD, given_gpus, unwritable
from orchestrator.ledger.storage import Storage
from tests.unit.orchestrator.backends.test_slurm_allocation import AROUND


def test_a_probe_says_what_the_node_has_then_that_it_heard(tmp_path: Path) -> None:
    words = ["-m", "orchestrator.control.slurm.probe", "--store", str(tmp_path), "--run", "p1"]
    words += ["--scratch", str(tmp_path / "scratch"), "--folder", str(tmp_path)]
    words += ["--folder", "/nowhere/speech"]
    env = os.environ | AROUND
    probe = subprocess.Popen([sys.executable, *words], env=env)
    folder = Storage(str(tmp_path)).at("doctor", "p1")
    deadline = time.monotonic() + 60
    while not folder.exists(FOUND) and time.monotonic() < deadline:
        time.sleep(0.05)
    found = folder.read_json(FOUND)
    assert found["node"] == "node3"
    assert found["python"].endswith(f" at {sys.executable}")
    assert found["packages"].keys() == set(JOB_PACKAGES)
    assert all(found["packages"].values())
    assert (found["scratch"], found["unseen"]) == ("", ["/nowhere/speech"])
    assert not folder.exists(HEARD)
    probe.send_signal(signal.SIGUSR2)
    assert probe.wait(60) == 0
    assert folder.read_json(HEARD) == {"signal": "SIGUSR2"}


@pytest.mark.parametrize(("visible", "number"), [("0,3", 2), ("", 0), ("GPU-1", 1)])
def test_accelerators_are_those_that_slurm_shows(
    monkeypatch: pytest.MonkeyPatch, visible: str, number: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert given_gpus() == number


def test_without_slurms_word_all_of_the_node_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert given_gpus() == num_gpus()


@pytest.mark.parametrize(
    ("scratch", "problem"),
    [
        ("", ""),
        ("/dev/null/scratch", "Not a directory|File exists"),
        ("/proc/scratch", "No such file or directory"),
        ("${env:NO_SUCH_VARIABLE}/x", "NO_SUCH_VARIABLE is not set"),
    ],
)
def test_a_scratch_that_takes_nothing_is_found_before_training(scratch: str, problem: str) -> None:
    assert re.search(problem, unwritable(scratch))
    assert bool(unwritable(scratch)) == bool(problem)
