"""Keeps several leases at once, for whoever does one long thing under all of them."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Self

from orchestrator.errors import LeaseHeldError
from orchestrator.ledger.lease import HeldLease


class LeaseKeeper:
    """A context in which a thread keeps leases; those left at its end are given back."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._held: list[HeldLease] = []
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._beaten_at = time.monotonic()
        self._lost: LeaseHeldError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for lease in tuple(self._held):
            with suppress(OSError):  # it dies of its age then
                self.drop(lease)

    def take(self, lease: HeldLease) -> HeldLease:
        """Keep it from now on."""
        with self._lock:
            self._held.append(lease)
        return lease

    def drop(self, lease: HeldLease) -> None:
        """Give it back."""
        with self._lock:
            self._held.remove(lease)
            lease.release()

    def require(self) -> None:
        """Raises LeaseHeldError when one was lost, which may have happened in a sleep of ours."""
        if time.monotonic() - self._beaten_at > 2 * self._every_s:
            self._beat()
        if self._lost:
            raise self._lost

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            with suppress(OSError):  # the store may be back at the next beat
                self._beat()

    def _beat(self) -> None:
        with self._lock:
            try:
                for lease in self._held:
                    lease.beat()
                self._beaten_at = time.monotonic()
            except LeaseHeldError as error:
                self._lost = error
