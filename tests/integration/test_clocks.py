"""Clocks that are set while processes live: nobody looks dead, and the dead are followed in time.

The holder of a lease runs on what it takes for another machine, under libfaketime, whose clock a
test sets while it runs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.errors import LeaseHeldError
from orchestrator.ledger import lease as leases
from orchestrator.ledger.storage import Storage

TIMEOUT_S = 2.0
LIBRARY = Path("/usr/lib", f"{os.uname().machine}-linux-gnu", "faketime", "libfaketime.so.1")
HOLDER = """
import select, sys, time
from orchestrator.ledger import lease as leases
from orchestrator.ledger.storage import Storage

with leases.held(Storage(sys.argv[1]), holder="other", timeout_s=float(sys.argv[2])) as beat:
    while True:
        beat()
        print(time.time(), flush=True)
        select.select([], [], [], 0.05)  # what libfaketime makes of time.sleep fails
"""

pytestmark = pytest.mark.skipif(
    not LIBRARY.exists() or os.getuid() != 0 or shutil.which("unshare") is None,
    reason="needs libfaketime and a host name of its own (root)",
)


@dataclass
class Holder:
    """A process that holds a lease, and the file that says how far its clock is ahead."""

    storage: Storage
    process: subprocess.Popen[str]
    offset: Path

    def set_clock(self, ahead_s: float) -> None:
        """Set its clock, and wait until it shows that."""
        aside = self.offset.with_suffix(".new")
        aside.write_text(f"{ahead_s:+.0f}\n")
        aside.replace(self.offset)
        while abs(self.says() - time.time() - ahead_s) > 60:
            pass

    def says(self) -> float:
        """What time it is there."""
        assert self.process.stdout is not None
        return float(self.process.stdout.readline())


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    with holding(tmp_path) as made:
        yield made


@contextmanager
def holding(folder: Path) -> Iterator[Holder]:
    storage, offset = Storage(str(folder / "artifact")), folder / "offset"
    offset.write_text("+0\n")
    env = {
        **os.environ,
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    script = 'hostname elsewhere && exec "$@"'
    elsewhere = ("unshare", "--uts", "sh", "-c", script, "sh")
    process = subprocess.Popen(
        [*elsewhere, sys.executable, "-c", HOLDER, storage.url, str(TIMEOUT_S)],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    made = Holder(storage, process, offset)
    made.says()
    try:
        yield made
    finally:
        process.kill()
        process.communicate()


def test_a_clock_that_is_set_makes_nobody_look_dead(holder: Holder) -> None:
    watch = leases.Watch()
    for ahead_s in (0.0, 3600.0, -3600.0):
        holder.set_clock(ahead_s)
        until = time.monotonic() + 1.2 * TIMEOUT_S
        while time.monotonic() < until:
            assert holder.says()
            assert watch.live(holder.storage, TIMEOUT_S) is not None
            assert leases.live(holder.storage, TIMEOUT_S) is not None
        with pytest.raises(LeaseHeldError):
            leases.acquire(holder.storage, holder="us", timeout_s=TIMEOUT_S)


@pytest.mark.parametrize("ahead_s", [-3600.0, 3600.0])
def test_the_dead_are_followed_in_the_timeout(holder: Holder, ahead_s: float) -> None:
    holder.set_clock(ahead_s)
    holder.process.kill()
    holder.process.wait()
    began = time.monotonic()
    assert leases.acquire(holder.storage, holder="us", timeout_s=TIMEOUT_S).number == 2
    assert TIMEOUT_S <= time.monotonic() - began < TIMEOUT_S + 3


def test_who_was_stopped_for_longer_finds_itself_fenced_off(holder: Holder) -> None:
    """As a laptop that slept, or a process that was sent SIGSTOP."""
    holder.process.send_signal(signal.SIGSTOP)
    leases.acquire(holder.storage, holder="us", timeout_s=TIMEOUT_S)
    holder.process.send_signal(signal.SIGCONT)
    assert holder.process.wait(timeout=30) == 1, "it ended with the error"
    assert leases.current(holder.storage) is not None
    with pytest.raises(LeaseHeldError, match="lease 1 was lost to 2"):
        leases.require_newest(holder.storage, 1)
