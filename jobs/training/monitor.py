"""The driver's view of its ranks: what they say, whether they hang, when they must leave.

In: the attempt's folder, into which every rank's heartbeat writes. Out: progress and events for
those who watch; an order to save and leave; the stacks of all ranks and their end when one hangs.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs.attempt import Attempt, StopRequestedError
from jobs.training.heartbeat import BEAT_S, DUMP, LIVE, STOP, beat_path, stacks_path
from jobs.training.rank import RankConfig
from orchestrator.errors import Cause, RunFailedError
from orchestrator.ledger.lease import Process
from orchestrator.ledger.storage import Storage

log = logging.getLogger(__name__)

_DUMP_WAIT_S = 6.0
"""Three beats: how long ranks get to write their own stacks."""
_LOOK_EVERY_S = 1.0
CHANGE_TOLD = 0.1
"""Relative change of the time between checkpoints that is worth an event."""
STEPPING = ("training", "validating")
"""Phases in which ranks do something every few seconds; elsewhere they load or write for long."""


class RankMonitor:
    """Passes on what rank 0 says, finds hangs, and asks the ranks to save and leave."""

    def __init__(self, attempt: Attempt, config: RankConfig, world_size: int) -> None:
        self._attempt, self._config, self._world_size = attempt, config, world_size
        self._record: Storage = attempt.record.storage
        self._began = False
        self._interval_s = 0.0
        self._ticks, self._ticked_at = 0, time.monotonic()
        """Work done by all ranks, and when it last grew, by this machine's clock."""
        self._looked_at = 0.0

    def look(self) -> None:
        """Report the newest step.

        Raises LeaseHeldError when the right to this key is lost, RunFailedError when a rank hangs,
        StopRequestedError when Ray is about to take a node away.
        """
        self._attempt.check()
        now = time.monotonic()
        if now - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = now
        try:
            self._report()
            self._find_hang(now)
            hosts = self._hosts()
        except OSError as error:  # the store may be back at the next look
            log.warning("the attempt's folder is out of reach: %s", error)
            return
        # Ranks that have beaten were started by a Ray that is imported whole.
        if hosts and hosts & draining_hosts():
            self._attempt.event("preemption_notice")
            raise StopRequestedError

    def stopped(self) -> bool:
        """Whether the ranks left after a wish to stop, before the last step."""
        live = self._live()
        return bool(live and live.get("stopped"))

    def report(self) -> None:
        """Pass on the last words of ranks that have ended."""
        with suppress(OSError):
            self._report()

    def ask_to_stop(self) -> None:
        """Ask the ranks to make a checkpoint after their current step and to end."""
        self._attempt.event("stop_asked")
        with suppress(OSError):  # what ends this attempt must not be hidden by another error
            self._record.replace(STOP, b"{}")

    def _live(self) -> dict[str, Any] | None:
        try:
            live: dict[str, Any] = self._record.read_json(LIVE)
        except FileNotFoundError:
            return None
        return live

    def _report(self) -> None:
        live = self._live()
        if live is None or "first_step" not in live["phases"]:
            return
        if not self._began:
            self._began = True
            for problem in live["refused"]:
                self._attempt.event("checkpoint_refused", problem=problem)
            self._attempt.event(
                "training", resumed_from=live["resumed_from"], phases=live["phases"]
            )
        interval_s = live.get("checkpoint_interval", {}).get("interval_s", 0.0)
        if abs(interval_s - self._interval_s) > CHANGE_TOLD * self._interval_s:
            self._interval_s = interval_s
            self._attempt.event("checkpoint_interval", **live["checkpoint_interval"])
        self._attempt.progress(live["step"], self._config.train.steps, "steps", **live["rates"])

    def _find_hang(self, now: float) -> None:
        """End the attempt when no rank has done anything for too long.

        Ranks wait for each other in every step, so one that hangs soon stops all of them; and a
        rank that waits for a slow one, or for its upload, is no hang.
        """
        retry = self._attempt.cluster.retry
        beats = {rank: self._beat(rank) for rank in range(self._world_size)}
        known = [beat for beat in beats.values() if beat]
        ticks = sum(beat["ticks"] + beat["files"] for beat in known)
        if ticks != self._ticks:
            self._ticks, self._ticked_at = ticks, now
        steps = bool(known) and all(beat["phase"] in STEPPING for beat in known)
        timeout_s = retry.hang_timeout_s if steps else retry.start_timeout_s
        if (idle_s := now - self._ticked_at) > timeout_s:
            self._end_hang(beats, idle_s)

    def _beat(self, rank: int) -> dict[str, Any] | None:
        try:
            beat: dict[str, Any] = self._record.read_json(beat_path(rank))
        except FileNotFoundError:
            return None
        return beat

    def _hosts(self) -> set[str]:
        beats = map(self._beat, range(self._world_size))
        return {beat["process"]["host"].split("/")[0] for beat in beats if beat}

    def _end_hang(self, beats: dict[int, dict[str, Any] | None], idle_s: float) -> None:
        """Keep the stacks of all ranks, end them, and raise RunFailedError."""
        suspect = _suspect(beats)
        self._record.replace(DUMP, b"{}")
        time.sleep(_DUMP_WAIT_S)
        for rank, process in _here(beats):
            path = stacks_path(rank)
            if not self._record.exists(path):  # it cannot run: look from outside
                self._record.replace(path, seen_from_outside(process.pid))
        self._attempt.event("hang", rank=suspect, idle_s=idle_s)
        for _, process in _here(beats):
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        raise RunFailedError(
            f"train: rank {suspect} made no progress for {idle_s:.0f} s; the stacks of all ranks "
            f"are in {self._record.url}/rank-*.stacks.txt",
            cause=Cause.COMM_HANG,
        )


def _suspect(beats: dict[int, dict[str, Any] | None]) -> int:
    """The rank that has fallen silent; else the one that has done least."""
    newest = max((beat["at"] for beat in beats.values() if beat), default=0.0)

    def behind(rank: int) -> tuple[bool, int]:
        beat = beats[rank]
        is_silent = not beat or newest - beat["at"] > 3 * BEAT_S
        return (not is_silent, beat["ticks"] if beat else 0)

    return min(beats, key=behind)


def _here(beats: dict[int, dict[str, Any] | None]) -> Iterator[tuple[int, Process]]:
    """Ranks whose process is on this machine; those elsewhere end with their launcher."""
    for rank, beat in beats.items():
        if beat:
            process = Process(**beat["process"])
            if process.is_alive() is not None:
                yield rank, process


def seen_from_outside(pid: int) -> bytes:
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


def draining_hosts() -> set[str]:
    """Names of the hosts that this process's Ray cluster was told will go away; empty without."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return set()
    from ray._private.state import state

    draining = state.get_draining_nodes()
    if not draining:
        return set()
    return {n["NodeManagerHostname"] for n in ray.nodes() if n["NodeID"] in draining}
