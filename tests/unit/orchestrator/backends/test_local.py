"""Real processes of this machine: started, asked about, ended with everything they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from orchestrator.backends.base import Job, JobRef
from orchestrator.backends.local import LocalBackend
from orchestrator.errors import BackendError, Cause
from orchestrator.ledger.status import JobState
from tests.hanging_mount import can_mount, hanging_mount


def job(folder: Path, script: str, **how: object) -> Job:
    argv = (sys.executable, "-S", "-c", script)
    return Job(name="job", argv=argv, log=folder / "logs" / "job.log", **how)


def wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def end_of(backend: LocalBackend, ref: JobRef) -> tuple[JobState, int | None]:
    wait(lambda: backend.poll([ref])[ref].state.is_final, "the job did not end")
    status = backend.poll([ref])[ref]
    return status.state, status.exit_code


@pytest.mark.parametrize(
    ("script", "end"),
    [
        ("pass", (JobState.SUCCEEDED, 0)),
        ("raise SystemExit(7)", (JobState.FAILED, 7)),
        ("import os; os.kill(os.getpid(), 9)", (JobState.FAILED, -9)),
    ],
)
def test_how_a_job_ends(tmp_path: Path, script: str, end: tuple[JobState, int]) -> None:
    backend = LocalBackend()
    assert end_of(backend, backend.submit(job(tmp_path, script))) == end


def test_output_and_environment(tmp_path: Path) -> None:
    backend = LocalBackend()
    script = "import os, sys; print(os.environ['X'], flush=True); print('err', file=sys.stderr)"
    asked = job(tmp_path, script, env={"X": "y"})
    for _ in range(2):  # a log is appended to, never overwritten
        end_of(backend, backend.submit(asked))
    assert asked.log.read_text() == "y\nerr\n" * 2


def test_a_job_runs_in_a_session_of_its_own(tmp_path: Path) -> None:
    backend = LocalBackend()
    ref = backend.submit(job(tmp_path, "import os; print(os.getsid(0) == os.getpid())"))
    end_of(backend, ref)
    assert (tmp_path / "logs" / "job.log").read_text() == "True\n"


def test_what_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(BackendError) as raised:
        LocalBackend().submit(Job(name="job", argv=("/no/such",), log=tmp_path / "log"))
    assert str(raised.value) == (
        "/no/such: cannot be started (No such file or directory); check the path"
    )


def test_a_job_waits_for_nothing(tmp_path: Path) -> None:
    backend = LocalBackend(grace_s=0.1)
    first = backend.submit(job(tmp_path, "import time; time.sleep(60)"))
    with pytest.raises(BackendError) as raised:
        backend.submit(job(tmp_path, "pass"), after=[first])
    backend.cancel([first])
    assert str(raised.value) == (
        "job: the local backend has no queue; submit it when its upstream is done"
    )
    wait(lambda: backend.poll([first])[first].state.is_final, "not cancelled")
    second = backend.submit(job(tmp_path, "pass"), after=[first])
    assert end_of(backend, second) == (JobState.SUCCEEDED, 0)


def test_cancelling_warns_first(tmp_path: Path) -> None:
    backend = LocalBackend(grace_s=10)
    script = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143));"
        "print('ready', flush=True); time.sleep(60)"
    )
    asked = job(tmp_path, script)
    ref = backend.submit(asked)
    wait(lambda: asked.log.read_text() == "ready\n", "the job did not start")
    started = time.monotonic()
    backend.cancel([ref])
    assert time.monotonic() - started < 9
    assert end_of(backend, ref) == (JobState.FAILED, 143)


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
"""


def started_child(asked: Job) -> psutil.Process:
    wait(lambda: asked.log.read_text().endswith("\n"), "the job did not start")
    return psutil.Process(int(asked.log.read_text()))


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_cancelling_ends_the_stubborn_and_their_children(tmp_path: Path) -> None:
    backend = LocalBackend(grace_s=0.2)
    asked = job(tmp_path, f"{STUBBORN}time.sleep(60)")
    ref = backend.submit(asked)
    child = started_child(asked)
    backend.cancel([ref])
    assert end_of(backend, ref) == (JobState.FAILED, -9)
    wait(lambda: is_gone(child), "the job's child lives on")


def test_what_an_ended_job_left_running_is_ended(tmp_path: Path) -> None:
    backend = LocalBackend()
    asked = job(tmp_path, STUBBORN)
    ref = backend.submit(asked)
    child = started_child(asked)
    assert end_of(backend, ref) == (JobState.SUCCEEDED, 0)
    wait(lambda: is_gone(child), "the job's child lives on")


SUBMITTER = """
import sys, time
from pathlib import Path
from orchestrator.backends.base import Job
from orchestrator.backends.local import LocalBackend
script = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
argv = (sys.executable, "-S", "-c", script)
detached = sys.argv[2] == "detached"
LocalBackend().submit(Job(name="job", argv=argv, log=Path(sys.argv[1]), detached=detached))
time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["attached", "detached"])
def test_a_job_ends_with_whoever_submitted_it_unless_detached(tmp_path: Path, kind: str) -> None:
    log = tmp_path / "job.log"
    argv = [sys.executable, "-c", SUBMITTER, str(log), kind]
    with subprocess.Popen(argv) as submitter:
        wait(lambda: log.exists() and log.read_text().endswith("\n"), "the job did not start")
        child = psutil.Process(int(log.read_text()))
        submitter.kill()
    if kind == "attached":
        wait(lambda: is_gone(child), "the job outlives its submitter")
    else:
        time.sleep(0.2)
        assert not is_gone(child)
        child.kill()


def test_a_detached_job_is_known_by_pid_and_start(tmp_path: Path) -> None:
    backend = LocalBackend(grace_s=5)
    ref = backend.submit(job(tmp_path, "import time; time.sleep(60)", detached=True))
    assert backend.poll([ref])[ref].state is JobState.RUNNING
    assert LocalBackend().poll([ref])[ref].state is JobState.RUNNING
    pid = int(ref.id.split(":")[0])
    someone_else = JobRef(backend="local", id=f"{pid}:1.0:1")
    assert backend.poll([someone_else])[someone_else].state is JobState.UNKNOWN
    os.kill(pid, signal.SIGKILL)
    wait(lambda: backend.poll([ref])[ref].state is JobState.UNKNOWN, "taken to be running")
    wait(lambda: not psutil.pid_exists(pid), "a zombie stays")


def test_cancelling_what_is_gone_is_fine(tmp_path: Path) -> None:
    backend = LocalBackend()
    ref = backend.submit(job(tmp_path, "pass"))
    end_of(backend, ref)
    backend.cancel([ref])
    backend.cancel([])


def hang_of(backend: LocalBackend, ref: JobRef, path: Path) -> None:
    end_of(backend, ref)
    status = backend.poll([ref])[ref]
    assert (status.state, status.cause) == (JobState.FAILED, Cause.STORAGE)
    assert status.detail.startswith(f"{path}: does not answer (waited for ")


@pytest.mark.parametrize(
    "script",
    [
        "open({path!r})",
        "import threading; threading.Thread(target=open, args=({path!r},)).start()",
        "import subprocess, sys; subprocess.Popen(['sleep', '60']); open({path!r})",
    ],
    ids=["itself", "a thread", "with a child"],
)
def test_a_job_whose_file_does_not_answer_is_ended_with_all_it_started(
    tmp_path: Path, script: str
) -> None:
    os.mkfifo(tmp_path / "silent")
    backend = LocalBackend(hang_timeout_s=0.5)
    ref = backend.submit(job(tmp_path, script.format(path=str(tmp_path / "silent"))))
    hang_of(backend, ref, tmp_path / "silent")
    session = int(ref.id.split(":")[0])
    wait(lambda: not in_session(session), "something was left")


def in_session(session: int) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


@pytest.mark.skipif(not can_mount(), reason="needs root and /dev/fuse")
def test_a_job_that_cannot_even_be_killed_ends_all_the_same(tmp_path: Path) -> None:
    with hanging_mount(tmp_path / "mount", "weights", b"x") as mount:
        mount.hangs = True
        backend = LocalBackend(hang_timeout_s=0.5, reap_timeout_s=0.5)
        ref = backend.submit(job(tmp_path, f"open({str(mount.file)!r})"))
        hang_of(backend, ref, mount.file)
    backend.cancel([ref])


def test_a_job_that_waits_for_something_else_goes_on(tmp_path: Path) -> None:
    backend = LocalBackend(hang_timeout_s=0.2)
    ref = backend.submit(job(tmp_path, "import time; time.sleep(1)"))
    assert end_of(backend, ref) == (JobState.SUCCEEDED, 0)
