"""A store that fills up: every verb says so in one line, and nothing half written stays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.control.code_snapshot import FORMAT
from orchestrator.errors import ExitCode
from orchestrator.ledger.path_store import TEMPORARY
from orchestrator.ledger.run import to_yaml
from orchestrator.ledger.storage import to_json
from tests.unit.orchestrator.control.slurm.scene import STAGES, Scene
from tests.unit.orchestrator.scheduler import Answers


class SmallStore:
    """A run on Slurm of which a stage has failed, in a store of 2 MB."""

    def __init__(self, folder: Path, answers: Answers) -> None:
        self.folder, self.scene = folder, Scene(folder, answers)
        self.scene.run.storage.replace("code.json", to_json({"format": FORMAT}))
        self.scene.publish(*STAGES[:3])
        self.scene.start()
        self.scene.books(tokenize="FAILED")
        self.cluster = answers.folder / "cluster.yaml"
        self.cluster.write_bytes(to_yaml(self.scene.run.cluster()))

    def leave(self, free: int) -> None:
        """Let somebody's file take all but some bytes."""
        ballast = self.folder / "ballast"
        ballast.unlink(missing_ok=True)
        there = os.statvfs(self.folder)
        ballast.write_bytes(bytes(there.f_bavail * there.f_bsize - free))

    def orchestrator(self, verb: str, *words: str) -> tuple[int, str]:
        """Exit code and stderr of a verb."""
        argv = [sys.executable, "-m", "orchestrator.cli.main", verb, "small", *words]
        done = subprocess.run(
            [*argv, "--cluster", str(self.cluster)], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr

    def half_written(self) -> list[Path]:
        return [p for p in self.folder.rglob("*") if p.name.startswith(TEMPORARY)]


@pytest.fixture
def store(tmp_path: Path, answers: Answers) -> Iterator[SmallStore]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True)
    try:
        yield SmallStore(folder, answers)
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("free", [0, 16_384, 28_672])
def test_resuming_in_a_full_store_is_one_line_and_goes_on_when_there_is_room(
    store: SmallStore, free: int
) -> None:
    store.leave(free)
    code, said = store.orchestrator("resume")
    assert code == ExitCode.UNREACHABLE
    assert said.count("\n") == 1, said
    assert "No space left on device; free some space, or name another store" in said
    assert store.half_written() == []
    store.leave(1 << 20)
    store.scene.queue_all()
    code, said = store.orchestrator("resume")
    assert (code, "Traceback" in said) == (0, False), said


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("status",), ExitCode.FAILED, ""),
        (("logs", "--first-error"), ExitCode.DONE, ""),
        (("cancel",), ExitCode.DONE, "not running; nothing to cancel\n"),
        (("report", "-o", "/dev/full"), ExitCode.BAD_REQUEST, "choose another file\n"),
    ],
)
def test_what_only_reads_goes_on_in_a_full_store(
    store: SmallStore, words: tuple[str, ...], code: int, says: str
) -> None:
    """How it stands does not change for want of a place to write it down."""
    store.leave(0)
    for _ in range(2):
        got, said = store.orchestrator(*words)
        assert (got, said.endswith(says)) == (code, True), said
    assert store.half_written() == []


def test_cancelling_in_a_full_store_is_one_line(store: SmallStore) -> None:
    store.scene.queue_all()
    store.leave(0)
    code, said = store.orchestrator("cancel")
    assert (code, said.count("\n")) == (ExitCode.UNREACHABLE, 1), said
    assert "free some space" in said
