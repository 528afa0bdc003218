"""The driver's view of its ranks: how far they are, whether they hang, when they must leave.

In: the attempt's folder, into which every rank's heartbeat writes. Out: progress and events for
those who watch; an order to save and leave; the stacks of all ranks and their end when one hangs.

Ranks wait for each other in every step, so rank 0 stands still soon after any other. A look reads
its files alone, whatever the number of ranks; those of all ranks only while rank 0 stands still.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs.attempt import Attempt, StopRequestedError
from jobs.ray_nodes import draining_hosts
from jobs.training.heartbeat import BEAT_S, DUMP, LIVE, STOP, beat_path, stacks_path
from jobs.training.rank import RankConfig
from orchestrator.errors import Cause, RunFailedError
from orchestrator.ledger.lease import Process
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.stuck_files import StuckFile

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""Shortest time between two looks."""
MIN_CHANGE = 0.1
"""Relative change of the time between checkpoints that is worth an event."""
Beat = dict[str, Any]
"""A rank's newest heartbeat."""
STEPPING = ("training", "validating")
"""Phases in which ranks do something every few seconds; elsewhere they load or write for long."""


class RankMonitor:
    """Passes on how far rank 0 is, finds hangs, and asks the ranks to save and leave.

    ``probe_every_s``: time between two readings of all heartbeats, while rank 0 stands still, by
    ``clock``. ``dump_wait_s``: how long ranks get to write their own stacks, some heartbeats.
    """

    def __init__(
        self,
        attempt: Attempt,
        config: RankConfig,
        world_size: int,
        *,
        probe_every_s: float = 10.0,
        dump_wait_s: float = 3 * BEAT_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        draining: Callable[[], set[str]] | None = None,
        grows: Callable[[], bool] = lambda: False,
    ) -> None:
        self._attempt, self._config, self._world_size = attempt, config, world_size
        self._record: Storage = attempt.record.storage
        self._probe_every_s, self._dump_wait_s, self._clock = probe_every_s, dump_wait_s, clock
        self._sleep = sleep
        self._draining_hosts, self._grows = draining or draining_hosts, grows
        self._has_begun = False
        self._interval_s = 0.0
        self._leader_work, self._work = 0, 0
        """Work done by rank 0, and by all ranks when they were last read."""
        self._worked_at = self._probed_at = clock()
        """When either last grew, and when all ranks were last read or needed not be."""
        self._looked_at = -math.inf

    def look(self) -> None:
        """Report the newest step.

        Raises LeaseHeldError when the right to this key is lost, RunFailedError when a rank hangs,
        StopRequestedError when Ray is about to take a node away, or there is room for more ranks.
        """
        self._attempt.check()
        now = self._clock()
        if now - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        try:
            self._report()
            leader = self._beat(0)
            self._find_hang(leader, now)
            # Ranks that have beaten were started by a Ray that is imported whole.
            must_leave = leader is not None and self._must_leave(self._draining_hosts())
        except OSError as error:  # the store may be back at the next look
            log.warning("the attempt's folder is out of reach: %s", error)
            return
        if must_leave:
            self._attempt.event("preemption_notice")
            raise StopRequestedError
        if self._has_begun and self._grows():
            self._attempt.event("resize_asked")
            raise StopRequestedError

    def stopped(self) -> bool:
        """Whether the ranks left after a wish to stop, before the last step."""
        live = self._read(LIVE)
        return bool(live and live.get("stopped"))

    def report(self) -> None:
        """Pass on how far ranks that have ended had come."""
        with suppress(OSError):
            self._report()

    def ask_to_stop(self) -> None:
        """Ask the ranks to make a checkpoint after their current step and to end."""
        self._attempt.event("stop_asked")
        with suppress(OSError):  # what ends this attempt must not be hidden by another error
            self._record.replace(STOP, b"{}")

    def _read(self, path: str) -> dict[str, Any] | None:
        try:
            return dict(self._record.read_json(path))
        except FileNotFoundError:
            return None

    def _report(self) -> None:
        live = self._read(LIVE)
        if live is None or "first_step" not in live["phases"]:
            return
        if not self._has_begun:
            self._has_begun = True
            for problem in live["refused"]:
                self._attempt.event("checkpoint_refused", problem=problem)
            self._attempt.event(
                "training", resumed_from=live["resumed_from"], phases=live["phases"]
            )
        interval_s = live.get("checkpoint_interval", {}).get("interval_s", 0.0)
        if abs(interval_s - self._interval_s) > MIN_CHANGE * self._interval_s:
            self._interval_s = interval_s
            self._attempt.event("checkpoint_interval", **live["checkpoint_interval"])
        self._attempt.progress(live["step"], self._config.settings.steps, "steps", **live["rates"])

    def _find_hang(self, leader: Beat | None, now: float) -> None:
        """End the attempt when no rank has done anything for too long.

        A rank that waits for a slow one, or for its upload, does not hang.
        """
        if (work := _work([leader])) != self._leader_work:
            self._leader_work, self._worked_at, self._probed_at = work, now, now
            return
        if now - self._probed_at < min(self._probe_every_s, self._timeout_s([leader]) / 4):
            return
        self._probed_at = now
        beats = self._beats()
        if (work := _work(beats)) != self._work:
            self._work, self._worked_at = work, now
        elif (idle_s := now - self._worked_at) > self._timeout_s(beats):
            self._end_hang(beats, idle_s)

    def _timeout_s(self, beats: Sequence[Beat | None]) -> float:
        """How long ranks may do nothing: less once all of them make steps."""
        known, retry = [beat for beat in beats if beat], self._attempt.cluster.retry
        steps = bool(known) and all(beat["phase"] in STEPPING for beat in known)
        return retry.hang_timeout_s if steps else retry.start_timeout_s

    def _beats(self) -> list[Beat | None]:
        return [self._beat(rank) for rank in range(self._world_size)]

    def _beat(self, rank: int) -> Beat | None:
        return self._read(beat_path(rank))

    def _must_leave(self, draining: set[str]) -> bool:
        """Whether a rank is on one of these hosts."""
        return bool(draining) and any(
            beat["process"]["host"].split("/")[0] in draining for beat in self._beats() if beat
        )

    def _end_hang(self, beats: Sequence[Beat | None], idle_s: float) -> None:
        """Keep the stacks of all ranks, end them, and raise RunFailedError."""
        self._record.replace(DUMP, b"{}")
        self._sleep(self._dump_wait_s)
        suspect = _suspect(beats, after := self._beats())
        for rank, process in _local_processes(beats):
            path = stacks_path(rank)
            if not self._record.exists(path):  # it cannot run
                self._record.replace(path, stacks_from_outside(process.pid))
        self._attempt.event("hang", rank=suspect, idle_s=idle_s)
        for _, process in _local_processes(beats):
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        if waits := _stuck(beats, after):
            where = f"{self._config.section}: rank {waits[0]}"
            raise RunFailedError(f"{where}: {waits[1]}", cause=Cause.STORAGE)
        raise RunFailedError(
            f"{self._config.section}: rank {suspect} made no progress for {idle_s:.0f} s; the "
            f"stacks of all ranks are in {self._record.url}/rank-*.stacks.txt",
            cause=Cause.COMM_HANG,
        )


def _work(beats: Sequence[Beat | None]) -> int:
    """Work done by some ranks, in ticks of their heartbeats."""
    return sum(beat["ticks"] + beat["files"] for beat in beats if beat)


def _suspect(before: Sequence[Beat | None], after: Sequence[Beat | None]) -> int:
    """The rank that has fallen silent between two looks; else the one that has done least."""

    def behind(rank: int) -> tuple[bool, int]:
        beat = after[rank]
        is_silent = beat is None or beat == before[rank]
        return (not is_silent, beat["ticks"] if beat else 0)

    return min(range(len(after)), key=behind)


def _stuck(
    before: Sequence[Beat | None], after: Sequence[Beat | None]
) -> tuple[int, StuckFile] | None:
    """The rank that has waited for a file all the time between two looks, longest of them all."""
    found = {
        rank: StuckFile(**late["waits_for"])
        for rank, (early, late) in enumerate(zip(before, after, strict=True))
        if early and late and early.get("waits_for") and late.get("waits_for")
        if early["waits_for"]["path"] == late["waits_for"]["path"]
        if early["waits_for"]["seconds"] < late["waits_for"]["seconds"]
    }
    return max(found.items(), key=lambda item: item[1].seconds, default=None)


def _local_processes(beats: Sequence[Beat | None]) -> Iterator[tuple[int, Process]]:
    """Ranks whose process is on this machine; those elsewhere end with their launcher."""
    for rank, beat in enumerate(beats):
        if beat:
            process = Process.from_json(beat["process"])
            if process.is_alive() is not None:
                yield rank, process


def stacks_from_outside(pid: int) -> bytes:
    """The Python stacks of another process, by py-spy; what went wrong where that cannot look."""
    beside = Path(sys.executable).with_name("py-spy")
    tool = str(beside) if beside.exists() else shutil.which("py-spy")
    if tool is None:
        return b"py-spy is not installed on this node; pip install py-spy\n"
    words = [tool, "dump", "--nonblocking", "--pid", str(pid)]
    try:
        done = subprocess.run(words, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{error}\n".encode()
    return done.stdout or done.stderr
