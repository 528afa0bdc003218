"""The right of one attempt to work on one key, and the number that fences off earlier holders.

``lease/000003.json`` is created exclusively; its number is the fencing number. The holder rewrites
it as a heartbeat. A lease is dead when it was released, or when its process is gone, which from
another machine only shows when the heartbeat stands still. No two machines' clocks are compared:
who would take a lease over watches it for the time-out by a clock of its own that only goes
forward, and who only looks asks for the age by the store's clock.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import psutil

from orchestrator.errors import AlreadyExistsError, LeaseHeldError
from orchestrator.ledger.records import understood
from orchestrator.ledger.storage import Storage, to_json

_CLOCK_STEP_S = 5.0
"""How far the start of a process may seem to move where only the wall clock tells of it."""
_POLL_S = 0.5
FOLDER = "lease"
"""Where leases lie in the folder that they give the right to."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process as it can be recognised later: a pid alone is soon someone else's."""

    host: str
    """Machine: host name and boot id."""
    pid: int
    """Process id."""
    started_at: float = field(compare=False)
    """When the process started, seconds since the epoch: for people, as setting the clock moves
    it."""
    start_ticks: int = 0
    """The same in clock ticks since the machine's boot, which nothing moves; 0 where the system
    does not say."""

    @classmethod
    def current(cls) -> Process:
        """This process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process now running under ``pid`` on this machine. Raises psutil.NoSuchProcess."""
        started_at = psutil.Process(pid).create_time()
        return cls(host=this_host(), pid=pid, started_at=started_at, start_ticks=_start_ticks(pid))

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Process:
        """The process of a record, whatever else a later version has noted of it."""
        return cls(**{f.name: raw[f.name] for f in fields(cls) if f.name in raw})

    def is_alive(self) -> bool | None:
        """Whether it still runs; None when it is on another machine, where nobody here can look."""
        if self.host != this_host():
            return None
        try:
            process = psutil.Process(self.pid)
            has_ended = process.status() == psutil.STATUS_ZOMBIE or _is_doomed(self.pid)
            return self._is(process) and not has_ended
        except psutil.NoSuchProcess:
            return False

    def age_s(self) -> float:
        """How long ago it started, in seconds; asked on its own machine."""
        if not self.start_ticks:
            return max(time.time() - self.started_at, 0.0)
        since_boot_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        return max(since_boot_s - self.start_ticks / os.sysconf("SC_CLK_TCK"), 0.0)

    def _is(self, process: psutil.Process) -> bool:
        if self.start_ticks:
            return _start_ticks(self.pid) == self.start_ticks
        return abs(process.create_time() - self.started_at) < _CLOCK_STEP_S


def _is_doomed(pid: int) -> bool:
    """Whether a process was killed and only waits for a file that does not answer."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        pending = next(int(line.split()[1], 16) for line in lines if line.startswith("SigPnd:"))
    except (OSError, StopIteration):
        return False
    return bool(pending & 1 << (signal.SIGKILL - 1))


def _start_ticks(pid: int) -> int:
    """When a process started, in ticks since the boot: proc(5), field 22 of stat."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:  # it has gone, or this system has no /proc
        return 0


def this_host() -> str:
    """This machine since its last boot."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()}/{boot.read_text().strip()[:8] if boot.exists() else ''}"


@dataclass(frozen=True, kw_only=True)
class Lease:
    """One holder's right, as written in the store."""

    number: int
    """Fencing number, counted from 1 for each key."""
    holder: str
    """Who holds it: run, stage instance and attempt."""
    process: Process
    """The process that keeps the heartbeat."""
    heartbeat_at: float
    """When the holder last said it lives, seconds since the epoch."""
    released_at: float | None = None
    """When the holder gave it back; None while held."""

    @property
    def is_open(self) -> bool | None:
        """Whether its holder is at work; None when only its heartbeat can tell."""
        return False if self.released_at is not None else self.process.is_alive()


class Watch:
    """Leases as one process sees them over time: those of other machines by their heartbeats.

    Keep one for as long as you look: a holder is dead once its heartbeat has stood still for the
    time-out, all of which this process must have watched.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[Lease, float]] = {}
        """By folder: the newest heartbeat, and when it was first seen, by our clock."""

    def live(self, storage: Storage, timeout_s: float) -> Lease | None:
        """The newest lease of the folder while its holder must be assumed to be at work."""
        lease = current(storage)
        if lease is None or (is_open := lease.is_open) is False:
            return None
        seen, since = self._seen.get(storage.url, (None, 0.0))
        if seen != lease:
            self._seen[storage.url] = lease, (since := self._clock())
        return lease if is_open or self._clock() - since < timeout_s else None

    def clear(self, storage: Storage, timeout_s: float) -> None:
        """Fence off a holder elsewhere that was seen to be dead.

        Whoever takes the lease next need not watch for as long again.
        """
        lease = current(storage)
        if lease and lease.is_open is None:
            with suppress(LeaseHeldError):
                acquire(storage, holder=lease.holder, timeout_s=timeout_s, watch=self).release()


class HeldLease:
    """A lease in the hands of its holder."""

    def __init__(self, storage: Storage, lease: Lease) -> None:
        self._storage = storage
        self.lease = lease

    @property
    def number(self) -> int:
        """The fencing number."""
        return self.lease.number

    def beat(self) -> None:
        """Say that the holder lives. Raises LeaseHeldError when a later lease was granted."""
        self.require()
        self._write(replace(self.lease, heartbeat_at=time.time()))

    def require(self) -> None:
        """Raises LeaseHeldError when a later lease was granted."""
        require_newest(self._storage, self.number)

    def release(self) -> None:
        """Give the right back, so that nobody has to wait for the heartbeat to go stale."""
        self._write(replace(self.lease, heartbeat_at=time.time(), released_at=time.time()))

    def _write(self, lease: Lease) -> None:
        self.lease = lease
        self._storage.replace(_path(self.number), to_json(asdict(lease)))


def acquire(
    storage: Storage,
    *,
    holder: str,
    timeout_s: float,
    watch: Watch | None = None,
    over: str = "",
    above: int = 0,
) -> HeldLease:
    """Take the lease of the folder ``storage``; that of a silent holder elsewhere is watched first.

    ``watch`` is one that may have done so. A holder whose name is ``over``, or begins by that and a
    slash, is fenced off though it lives. ``above``: a number to stay above, of another store's
    leases. Raises LeaseHeldError when a live attempt holds it.
    """
    watch, before = watch or Watch(), current(storage)
    while (held := watch.live(storage, timeout_s)) and not _is_of(held.holder, over):
        if held.is_open or held != before:
            raise LeaseHeldError(f"{storage.url}: held by {held.holder} (lease {held.number})")
        time.sleep(min(_POLL_S, timeout_s / 20))
    judged = held or before  # whoever comes after it as well asks for the same number
    number = max(judged.number if judged else 0, above) + 1
    lease = Lease(number=number, holder=holder, process=Process.current(), heartbeat_at=time.time())
    try:
        storage.create_json(_path(number), asdict(lease))
    except AlreadyExistsError:
        raise LeaseHeldError(
            f"{storage.url}: lease {number} was taken by another attempt just now"
        ) from None
    return HeldLease(storage, lease)


@contextmanager
def held(
    storage: Storage, *, holder: str, timeout_s: float, wait_s: float = 0.0
) -> Iterator[Callable[[], None]]:
    """Hold the lease of a folder; yields what must be called now and then to keep it.

    Raises LeaseHeldError when another live holder has not given it back within ``wait_s``.
    """
    deadline, watch = time.monotonic() + wait_s, Watch()
    while True:
        try:
            lease = acquire(storage, holder=holder, timeout_s=timeout_s, watch=watch)
            break
        except LeaseHeldError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_POLL_S)
    beaten_at = time.monotonic()

    def beat() -> None:
        nonlocal beaten_at
        if time.monotonic() - beaten_at > timeout_s / 6:
            lease.beat()
            beaten_at = time.monotonic()

    try:
        yield beat
    finally:
        lease.release()


def current(storage: Storage) -> Lease | None:
    """The newest lease of the folder, live or not; None when there never was one."""
    number = _newest_number(storage)
    return _lease(storage, number) if number else None


def live(storage: Storage, timeout_s: float) -> Lease | None:
    """The newest lease while its holder seems to be at work, from one look.

    Only for those who show it: whether it may be taken over, a `Watch` tells.
    """
    lease = current(storage)
    if lease is None or (is_open := lease.is_open) is False:
        return None
    return lease if is_open or storage.age_s(_path(lease.number)) < timeout_s else None


def _is_of(holder: str, run: str) -> bool:
    return bool(run) and f"{holder}/".startswith(f"{run}/")


def spans(storage: Storage) -> list[tuple[float, float]]:
    """From when to when the folder's leases were held, as far as their holders have said."""
    found = (_lease(storage, number) for number in range(1, _newest_number(storage) + 1))
    return [(began := lease.process.started_at, max(began, lease.heartbeat_at)) for lease in found]


def _lease(storage: Storage, number: int) -> Lease:
    with understood(f"{storage.url}/{_path(number)}", "remove it once nobody works there"):
        raw = storage.read_json(_path(number))
        return Lease(**{**raw, "process": Process.from_json(raw["process"])})


def require_newest(storage: Storage, number: int) -> None:
    """Raises LeaseHeldError when a later lease of the folder than this one was granted."""
    if (newest := _newest_number(storage)) > number:
        raise LeaseHeldError(
            f"{storage.url}: lease {number} was lost to {newest}; this attempt must end"
        )


def _newest_number(storage: Storage) -> int:
    return max(storage.numbers(FOLDER), default=0)


def _path(number: int) -> str:
    return f"{FOLDER}/{number:06d}.json"
