"""Stores that fill up or become read-only under a run: told all the same, waited for, gone on with.

A real tmpfs of some MB; needs root, as tests in CI have.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.backends.base import Job
from orchestrator.control.store_patience import StorePatience
from orchestrator.errors import ExitCode
from orchestrator.ledger.status import JobStatus
from tests.unit.jobs.test_attempt import Scene as AttemptScene
from tests.unit.orchestrator.control.test_supervise import ALL
from tests.unit.orchestrator.control.test_supervise import Scene as RunScene

FILL = "open({ballast!r}, 'wb', 0).write(bytes(64 << 20)); attempt.out.create('x', bytes(4096))"
READ_ONLY = "os.system('mount -o remount,ro ' + {disk!r}); attempt.out.create('x', b'1')"


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small disk for a store; what a machine keeps for itself lies elsewhere."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def free(disk: Path) -> None:
    (disk / "ballast").unlink()


def forbid(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


def allow(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


ACCIDENTS = [pytest.param(fill, free, id="full"), pytest.param(forbid, allow, id="read-only")]
Act = Callable[[Path], None]


@pytest.mark.parametrize("accident", [FILL, READ_ONLY], ids=["full", "read-only"])
@pytest.mark.parametrize(
    ("then", "cause", "code"),
    [
        ("", "storage", ExitCode.UNREACHABLE),
        ("raise DataError('no speech')", "bad_data", ExitCode.FAILED),
        ("raise RequestError('corpus: wrong')", "bad_request", ExitCode.BAD_REQUEST),
    ],
)
def test_an_attempt_whose_store_takes_no_word_says_why_all_the_same(
    disk: Path, accident: str, then: str, cause: str, code: int
) -> None:
    scene = AttemptScene(disk)
    words = accident.format(ballast=str(disk / "ballast"), disk=str(disk))
    body = ("try:", f"    {words}", "except OSError:", f"    {then or 'raise'}")
    ended, errors = scene.run_to_end(*body)
    assert ended == code, errors
    assert scene.attempt.failure["cause"] == cause
    assert "failed" not in scene.kinds()


class Waits(StorePatience):
    """Waits for a store, which is mended at the third look."""

    def __init__(self, mend: Callable[[], None]) -> None:
        super().__init__(pause_s=0.01)
        self._mend, self._looks = mend, 0

    def is_over(self, error: OSError) -> bool:
        self._looks += 1
        if self._looks == 3:
            self._mend()
        return super().is_over(error)


class Harmed(RunScene):
    """A run whose store comes to harm while a stage's job runs."""

    def __init__(self, disk: Path, harm: Act, stage: str) -> None:
        super().__init__(disk)
        self._disk, self._harm, self._stage = disk, harm, stage

    def _effect(self, job: Job, status: JobStatus) -> None:
        super()._effect(job, status)
        if job.name.startswith(f"{self._stage}-"):
            self._harm(self._disk)


@pytest.mark.parametrize(("harm", "mend"), ACCIDENTS)
@pytest.mark.parametrize("stage", ["corpus", "tokenize", "train"])
def test_a_run_goes_on_when_there_is_room_again(
    disk: Path, harm: Act, mend: Act, stage: str
) -> None:
    """Nothing is lost and no attempt wasted, whether it was to begin or to end then."""
    scene = Harmed(disk, harm, stage)
    supervisor = scene.supervisor(patience=Waits(lambda: mend(disk)))
    assert supervisor.run() == "succeeded"
    assert all(scene.ends(name) == [("succeeded", "", "done")] for name in ALL)


@pytest.mark.parametrize(("harm", "mend"), ACCIDENTS)
def test_the_ends_of_a_run_whose_store_stays_away_are_kept(
    disk: Path, harm: Act, mend: Act
) -> None:
    scene = Harmed(disk, harm, "tokenize")
    with pytest.raises(OSError, match=r"No space left|Read-only"):
        scene.supervisor(patience=StorePatience(for_s=0.1, pause_s=0.02)).run()
    (attempt,) = scene.run.attempts(scene.id("tokenize"))
    kept = attempt.end
    assert kept is not None
    assert not attempt.storage.exists("end.json")
    mend(disk)
    attempt.settle()
    assert attempt.storage.read_json("end.json") == kept
