"""Files that do not answer: a call into the file system that a thread does not come back from.

In: what the kernel says of every thread of a process (proc(5): syscall, stat, fdinfo), without
touching the file itself. Out: its path, and for how long. A mount that went away keeps whoever asks
it for ever, and neither a signal nor a time-out in Python helps; another thread or process can see
it. Linux on x86-64 and arm64; elsewhere nothing is ever found.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import BackendError, RequestError

_BY_DESCRIPTOR = {
    "x86_64": {0, 1, 5, 17, 18, 19, 20, 74, 75, 77, 78, 138, 217, 285, 295, 296},
    "aarch64": {44, 46, 47, 61, 63, 64, 65, 66, 67, 68, 69, 70, 80, 82, 83},
}
"""Calls whose first argument is an open file: read, write, fstat, fsync, getdents64, ... ."""
_BY_PATH = {
    "x86_64": {2, 4, 6, 21, 80, 82, 83, 84, 85, 86, 87, 89, 137},
    "aarch64": {43, 49},
}
"""Calls whose first argument is a path: open, stat, rename, mkdir, unlink, statfs, ... ."""
_BY_FOLDER = {
    "x86_64": {257, 258, 262, 263, 264, 265, 267, 269, 316, 332, 437, 439},
    "aarch64": {34, 35, 37, 38, 48, 56, 78, 79, 276, 291, 437, 439},
}
"""Calls whose second argument is a path below the folder of the first: openat, statx, ... ."""
_MACHINE = os.uname().machine
_DESCRIPTOR_CALLS = _BY_DESCRIPTOR.get(_MACHINE, set())
_PATH_CALLS, _FOLDER_CALLS = _BY_PATH.get(_MACHINE, set()), _BY_FOLDER.get(_MACHINE, set())
_NOT_STORED = ("/dev/", "/proc/", "/sys/", "/memfd:")
"""Where what is waited for is no stored file: terminals, devices, memory."""
_OF_SYSTEM = ("/usr/", "/lib")
_NO_CALL = -1
"""It sleeps outside of any call: it waits for a page of a file in its memory."""
_LONGEST_PATH = 4096
_LOOK_EVERY_S = 1.0
ANSWER_WITHIN_S = "ORCHESTRATOR_ANSWER_WITHIN_S"
"""Environment variable: how long the command line waits for a file, in seconds."""
_ANSWER_WITHIN_S = 30.0


@dataclass(frozen=True)
class StuckFile:
    """A file that some thread waits for."""

    path: str
    seconds: float
    """For how long, as far as was seen."""

    def __str__(self) -> str:
        return (
            f"{self.path}: does not answer (waited for {self.seconds:.0f} s); see whether its disk "
            "or mount is there"
        )


class FileWatch:
    """One process, looked at now and then."""

    def __init__(self, pid: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._tasks, self._clock = Path("/proc", str(pid), "task"), clock
        self._process = self._tasks.parent
        self._since: dict[str, tuple[tuple[str, ...], float]] = {}
        """By thread: the call it is in, with all that would change if it got on, and since when."""

    def look(self) -> StuckFile | None:
        """The file that a thread has waited for longest, with no progress between any two looks."""
        now = self._clock()
        calls = {thread: call for thread in self._threads() if (call := self._call(thread))}
        self._since = {
            thread: self._since[thread]
            if thread in self._since and self._since[thread][0] == call
            else (call, now)
            for thread, call in calls.items()
        }
        found = [StuckFile(call[0], now - since) for call, since in self._since.values()]
        return max(found, key=lambda file: file.seconds, default=None)

    def _threads(self) -> list[str]:
        try:
            return os.listdir(self._tasks)  # noqa: PTH208 (names, a hundred of them each second)
        except OSError:
            return []

    def _call(self, thread: str) -> tuple[str, ...] | None:
        """The file that a thread is in a call about, and what changes when the call gets on."""
        try:
            line = (self._tasks / thread / "syscall").read_text()
            number, *arguments = line.split()
            path, position = self._file(int(number), [int(a, 16) for a in arguments])
            if not path.startswith("/") or path.startswith(_NOT_STORED):
                return None
            state, *counts = (self._tasks / thread / "stat").read_text().rpartition(")")[2].split()
            is_stopped = state in "Tt"  # it waits for a signal
            return None if is_stopped else (path, line, position, *counts[10:12])
        except (OSError, ValueError, IndexError):  # it runs, has gone, or is somebody else's
            return None

    def _file(self, number: int, arguments: list[int]) -> tuple[str, str]:
        """The path that a call is about, and where in the file it is; empty for other calls."""
        if number == _NO_CALL:
            return self._likeliest_mapped(), ""
        if number in _DESCRIPTOR_CALLS:
            position = (self._process / "fdinfo" / str(arguments[0])).read_text().split()[1]
            return str((self._process / "fd" / str(arguments[0])).readlink()), position
        if number in _PATH_CALLS:
            return self._absolute(self._text_at(arguments[0]), "cwd"), ""
        if number in _FOLDER_CALLS:
            folder = arguments[0] & 0xFFFFFFFF
            below = "cwd" if folder >> 31 else f"fd/{folder}"  # AT_FDCWD is negative
            return self._absolute(self._text_at(arguments[1]), below), ""
        return "", ""

    def _likeliest_mapped(self) -> str:
        """Of the files in its memory the one whose page it waits for most likely.

        The largest of those that are no code and none of the system's, where there are any.
        """
        sizes, code = Counter[str](), set[str]()
        for line in (self._process / "maps").read_text().splitlines():
            span, rights, _, _, inode, *path = line.split(maxsplit=5)
            if path and inode != "0":
                begin, end = (int(address, 16) for address in span.split("-"))
                sizes[path[0]] += end - begin
                code |= {path[0]} if "x" in rights else set()

        def likely(path: str) -> tuple[bool, bool, int]:
            return path not in code, not path.startswith(_OF_SYSTEM), sizes[path]

        return max(sizes, key=likely, default="")

    def _absolute(self, path: str, below: str) -> str:
        return path if path.startswith("/") else str((self._process / below).readlink() / path)

    def _text_at(self, address: int) -> str:
        with (self._process / "mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            # Never over the end of a page, behind which nothing may lie.
            text = memory.read(min(_LONGEST_PATH, 4096 - address % 4096))
            if b"\0" not in text:
                text += memory.read(_LONGEST_PATH)
        return os.fsdecode(text.partition(b"\0")[0])


@contextmanager
def own_files_watched(
    timeout_s: float, act: Callable[[StuckFile], None], every_s: float = _LOOK_EVERY_S
) -> Iterator[None]:
    """Call ``act``, from a thread, once this process has waited for one file for so long."""
    ended = threading.Event()

    def watch() -> None:
        files = FileWatch(os.getpid())
        while not (stuck := files.look()) or stuck.seconds < timeout_s:
            if ended.wait(every_s):
                return
        act(stuck)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def answer_within_s() -> float:
    """How long the command line waits for a file."""
    said = os.environ.get(ANSWER_WITHIN_S, "")
    try:
        return float(said or _ANSWER_WITHIN_S)
    except ValueError:
        raise RequestError(f"${ANSWER_WITHIN_S}: {said!r} is no number; give seconds") from None


def require_answer(folder: Path) -> None:
    """Ask for a folder, by another process as this one might not come back.

    Raises BackendError when there is no answer in time.
    """
    deadline = time.monotonic() + (within_s := answer_within_s())
    nothing = os.open(os.devnull, os.O_RDWR)
    quiet = [(os.POSIX_SPAWN_DUP2, nothing, stream) for stream in (0, 1, 2)]
    try:
        pid = os.posix_spawnp("stat", ["stat", "-L", str(folder)], os.environ, file_actions=quiet)
    finally:
        os.close(nothing)
    pause_s = 0.001
    while not os.waitpid(pid, os.WNOHANG)[0]:  # one that waits there may not even be killed
        if time.monotonic() > deadline:
            raise BackendError(str(StuckFile(str(folder), within_s)))
        time.sleep(pause_s := min(2 * pause_s, 0.05))
