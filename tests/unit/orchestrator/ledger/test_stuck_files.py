"""Files that a process waits for are named; files that answer, and other waits, are not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from orchestrator.errors import BackendError, RequestError
from orchestrator.ledger import stuck_files
from orchestrator.ledger.lease import Process
from orchestrator.ledger.stuck_files import FileWatch, StuckFile, own_files_watched
from tests.hanging_mount import can_mount, hanging_mount

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine not in ("x86_64", "aarch64"),
    reason="asks Linux's /proc",
)
needs_mount = pytest.mark.skipif(not can_mount(), reason="needs root and /dev/fuse")


@pytest.fixture
def silent(tmp_path: Path) -> Path:
    """A file that does not answer: a named pipe that nobody writes to."""
    os.mkfifo(tmp_path / "silent")
    return tmp_path / "silent"


@contextmanager
def process(script: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, "-S", "-c", script]
    with subprocess.Popen(words, cwd=folder, stdin=subprocess.PIPE) as started:
        try:
            yield started
        finally:
            started.kill()


def until(is_so: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.mark.parametrize(
    "script",
    [
        "open({path!r}).read()",
        "import os; os.open('silent', os.O_RDONLY)",
        "import os; os.read(os.open({path!r}, os.O_RDWR), 10)",
        "import os; os.open('silent', 0, dir_fd=os.open('.', 0))",
        "import threading; threading.Thread(target=lambda: open({path!r})).start()",
    ],
    ids=["open", "relative", "read", "in a folder", "another thread"],
)
def test_a_file_that_does_not_answer_is_named(silent: Path, script: str) -> None:
    with process(script.format(path=str(silent)), silent.parent) as waiting:
        watch = FileWatch(waiting.pid)
        until(lambda: (found := watch.look()) and found.seconds > 0.3, "nothing was found")
        found = watch.look()
        assert found is not None
        assert found.path == str(silent)


BUSY = (
    "import time; time.sleep(60)",
    "import os; os.read(os.pipe()[0], 1)",
    "import socket; s = socket.socketpair(); s[0].recv(1)",
    "import threading; threading.Event().wait()",
    "while True: open('/proc/version').read()",
    "while True: open({big!r}, 'rb').read(1000000)",
    "import os\nwhile True: os.stat('.')",
    "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'], stdin=-1)",
    "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
)


def test_other_waits_and_files_that_answer_are_none(tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(4 << 20))
    with ExitStack() as stack:
        scripts = [script.format(big=str(big)) for script in BUSY]
        busy = [stack.enter_context(process(script, tmp_path)) for script in scripts]
        watches = [FileWatch(one.pid) for one in busy]
        time.sleep(0.2)
        for _ in range(15):
            for script, watch in zip(scripts, watches, strict=True):
                found = watch.look()
                assert found is None or found.seconds < 0.25, (script, found)
            time.sleep(0.03)


def test_a_file_is_waited_for_from_the_first_look_that_saw_no_progress(silent: Path) -> None:
    now = 0.0

    def clock() -> float:
        return now

    # Reads to the end, not to open it again before the writer has gone; and then by another call,
    # as the same one again differs by the processor's time alone, in hundredths of a second.
    again = f"import os; os.open({str(silent)!r}, os.O_RDONLY | os.O_NOCTTY)"
    with process(f"open({str(silent)!r}).read(); {again}", silent.parent) as waiting:
        watch = FileWatch(waiting.pid, clock)
        until(watch.look, "it does not wait")
        now += 50
        found = watch.look()
        assert found == StuckFile(str(silent), 50.0)
        assert str(found).startswith(f"{silent}: does not answer (waited for 50 s); ")
        silent.open("w").close()  # the first open comes back, and the second waits
        until(lambda: (found := watch.look()) and found.seconds == 0.0, "it waits on")


def test_a_process_that_has_gone_waits_for_nothing() -> None:
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    assert FileWatch(ended.pid).look() is None


def test_ones_own_files_are_watched_for_as_long_as_asked(silent: Path) -> None:
    found: list[StuckFile] = []
    with own_files_watched(0.2, found.append, every_s=0.05):
        reader = threading.Thread(target=silent.read_bytes)
        reader.start()
        until(lambda: found, "nothing was found")
    assert found[0].path == str(silent)
    silent.open("w").close()
    reader.join()
    with own_files_watched(0.0, found.append, every_s=0.05):
        pass
    assert len(found) == 1


def test_how_long_people_wait_is_theirs_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stuck_files.answer_within_s() == 30.0
    monkeypatch.setenv(stuck_files.ANSWER_WITHIN_S, "soon")
    with pytest.raises(RequestError, match=r"\$ORCHESTRATOR_ANSWER_WITHIN_S: 'soon' is no number"):
        stuck_files.answer_within_s()


@needs_mount
def test_a_mount_that_went_away_is_named_and_who_waits_for_it_counts_as_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even a kill ends a process there: nothing more is done by it, all the same."""
    monkeypatch.setenv(stuck_files.ANSWER_WITHIN_S, "0.5")
    folder = tmp_path / "mount"
    path = str(folder / "model.safetensors")
    mapping = f"import mmap; f = open({path!r}); m = mmap.mmap(f.fileno(), 0, prot=1); "
    mapping += "open('ready', 'w'); input(); m[500000]"
    with ExitStack() as stack:
        waiting = [stack.enter_context(process(f"input(); open({path!r})", tmp_path))]
        with hanging_mount(folder, "model.safetensors", bytes(1 << 20)) as mount:
            waiting.append(stack.enter_context(process(mapping, tmp_path)))
            until((tmp_path / "ready").exists, "it did not start")
            stuck_files.require_answer(folder)
            mount.hangs = True
            with pytest.raises(BackendError, match=r"mount: does not answer"):
                stuck_files.require_answer(folder)
            for one in waiting:
                assert one.stdin is not None
                one.stdin.write(b"\n")
                one.stdin.flush()
                require_named_then_dead(one.pid, path)


def require_named_then_dead(pid: int, path: str) -> None:
    watch, found_dead = FileWatch(pid), Process.of(pid)
    until(lambda: (found := watch.look()) and found.seconds > 0.2, "nothing was found")
    found = watch.look()
    assert found is not None
    assert found.path == path
    assert found_dead.is_alive()
    os.kill(pid, signal.SIGKILL)
    until(lambda: not found_dead.is_alive(), "it counts as alive")
    assert psutil.pid_exists(pid)
