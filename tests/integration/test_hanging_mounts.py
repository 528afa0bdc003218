"""Mounts that go away under a run and under people: named in time, and nobody waits for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.backends.local import LocalBackend
from orchestrator.errors import Cause, ExitCode
from orchestrator.ledger.stuck_files import ANSWER_WITHIN_S
from tests.hanging_mount import hanging_mount
from tests.integration.hanging_mounts import RECIPE, needs_mount, require_unreachable
from tests.unit.orchestrator.control.test_supervise import Scene
from tests.unit.source import ROOT


@needs_mount
@pytest.mark.parametrize(
    "words", [["submit", str(RECIPE)], ["status", "some-run"]], ids=["submit", "status"]
)
def test_a_verb_does_not_wait_for_a_store_that_does_not_answer(
    tmp_path: Path, words: list[str]
) -> None:
    require_unreachable(tmp_path, words)


def test_a_file_that_stops_answering_under_a_verb_ends_it(tmp_path: Path) -> None:
    """The store answers, one file in it does not."""
    scene = Scene(tmp_path)
    (Path(scene.run.storage.url) / "cluster.yaml").unlink()
    os.mkfifo(Path(scene.run.storage.url) / "cluster.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli.main", "status", scene.run.storage.url],
        env={**os.environ, "PYTHONPATH": str(ROOT), ANSWER_WITHIN_S: "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == ExitCode.UNREACHABLE
    assert f"{scene.run.storage.url}/cluster.yaml: does not answer" in done.stderr


@needs_mount
def test_code_that_does_not_answer_ends_the_attempts_as_storage(tmp_path: Path) -> None:
    """The process hangs before any line of ours has run in it, and is not even to be killed."""
    scene = Scene(tmp_path)
    code = Path(scene.run.storage.url, "code", "jobs")
    code.mkdir(parents=True)
    with hanging_mount(code, "__init__.py", b"") as mount:
        mount.hangs = True
        backend = LocalBackend(grace_s=0.5, hang_timeout_s=1.0, reap_timeout_s=0.5)
        supervisor = scene.supervisor(backend=backend)
        assert supervisor.run() == "failed"
    for child in backend._children.values():  # the mount is gone, and so they are
        assert child.wait(10) < 0
    ends = [attempt.end or {} for attempt in scene.run.attempts(scene.id("corpus"))]
    assert [end["cause"] for end in ends] == [Cause.STORAGE] * 2
    assert all(end["message"].startswith(f"{code}") for end in ends)
    assert all("does not answer (waited for 1 s)" in end["message"] for end in ends)
