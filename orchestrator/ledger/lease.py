"""The right of one attempt to work on one key, and the number that fences off earlier holders.

``lease/000003.json`` is created exclusively; its number is the fencing number. The holder rewrites
it as a heartbeat. A lease is dead when it was released, or when its process is gone, which on
another machine only the age of its heartbeat tells.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from orchestrator.errors import AlreadyExistsError, LeaseHeldError
from orchestrator.ledger.records import understood
from orchestrator.ledger.storage import Storage, to_json

CLOCK_STEP_S = 5.0
"""How far a process's start time may move: it is computed from the wall clock, which may be set
meanwhile. A pid is not given to another process that soon."""
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
    started_at: float
    """When the process started, seconds since the epoch."""

    @classmethod
    def current(cls) -> Process:
        """This process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process now running under ``pid`` on this machine. Raises psutil.NoSuchProcess."""
        return cls(host=this_host(), pid=pid, started_at=psutil.Process(pid).create_time())

    def is_alive(self) -> bool | None:
        """Whether it still runs; None when it is on another machine, where nobody here can look."""
        if self.host != this_host():
            return None
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_at) < CLOCK_STEP_S
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


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

    def is_live(self, timeout_s: float) -> bool:
        """Whether the holder must be assumed to be at work."""
        if self.released_at is not None:
            return False
        alive = self.process.is_alive()
        recent = time.time() - self.heartbeat_at < timeout_s
        return recent if alive is None else alive


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
        require_newest(self._storage, self.number)
        self._write(replace(self.lease, heartbeat_at=time.time()))

    def release(self) -> None:
        """Give the right back, so that nobody has to wait for the heartbeat to go stale."""
        self._write(replace(self.lease, heartbeat_at=time.time(), released_at=time.time()))

    def _write(self, lease: Lease) -> None:
        self.lease = lease
        self._storage.replace(_path(self.number), to_json(asdict(lease)))


def acquire(storage: Storage, *, holder: str, timeout_s: float) -> HeldLease:
    """Take the lease of the folder ``storage``.

    Raises LeaseHeldError while another live attempt holds it.
    """
    held = current(storage)
    if held is not None and held.is_live(timeout_s):
        raise LeaseHeldError(f"{storage.url}: held by {held.holder} (lease {held.number})")
    number = held.number + 1 if held else 1
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
    deadline = time.monotonic() + wait_s
    while True:
        try:
            lease = acquire(storage, holder=holder, timeout_s=timeout_s)
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


def spans(storage: Storage) -> list[tuple[float, float]]:
    """From when to when the folder's leases were held, as far as their holders have said."""
    found = (_lease(storage, number) for number in range(1, _newest_number(storage) + 1))
    return [(lease.process.started_at, lease.heartbeat_at) for lease in found]


def _lease(storage: Storage, number: int) -> Lease:
    with understood(f"{storage.url}/{_path(number)}", "remove it once nobody works there"):
        raw = storage.read_json(_path(number))
        return Lease(**{**raw, "process": Process(**raw["process"])})


def require_newest(storage: Storage, number: int) -> None:
    """Raises LeaseHeldError when a later lease of the folder than this one was granted."""
    if (newest := _newest_number(storage)) > number:
        raise LeaseHeldError(
            f"{storage.url}: lease {number} was lost to {newest}; this attempt must end"
        )


def _newest_number(storage: Storage) -> int:
    return max((int(name.split(".")[0]) for name in storage.children(FOLDER)), default=0)


def _path(number: int) -> str:
    return f"{FOLDER}/{number:06d}.json"
