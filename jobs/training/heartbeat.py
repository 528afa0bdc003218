"""A thread of each rank that writes how far the rank is, and reads what the rank is ordered to do.

The training loop itself does no I/O: it changes fields here, and every two seconds the thread
writes them into the attempt's folder, wherever that lies:

    beats/rank-00000.json     rank, step, phase, ticks (work done since the start), time, process,
                              the file it waits for
    live.json                 rank 0: newest rates, where it resumed, how long each phase took
    metrics-0001.jsonl        rank 0: a line a step, in numbered segments of 1,000 lines
    orders/stop.json          from the driver: save after this step and leave
    orders/dump.json          from the driver: write every thread's stack to rank-00000.stacks.txt
    orders/fault.json         a drill: the rank it names kills or stops itself
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from types import FrameType
from typing import Any, Self

from jobs.ray_nodes import kill_node
from jobs.training import faults
from jobs.training.rank import RankConfig, RankInfo
from orchestrator.errors import LedgerError
from orchestrator.ledger.attempt import FAULT_ORDER
from orchestrator.ledger.lease import Process
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.stuck_files import FileWatch

log = logging.getLogger(__name__)

BEAT_S = 2.0
SEGMENT_LINES = 1000
LIVE = "live.json"
STOP, DUMP = "orders/stop.json", "orders/dump.json"
WARNINGS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What schedulers send before they take a node away."""


def beat_path(rank: int) -> str:
    """Where a rank's newest beat lies in the attempt's folder."""
    return f"beats/rank-{rank:05d}.json"


def stacks_path(rank: int) -> str:
    """Where the stacks of a rank's threads lie in the attempt's folder."""
    return f"rank-{rank:05d}.stacks.txt"


class Heartbeat:
    """A context manager: the thread lives as long as the training of this rank."""

    def __init__(self, config: RankConfig, rank_info: RankInfo, *, every_s: float = BEAT_S) -> None:
        self._record, self._rank_info = Storage(config.record_url), rank_info
        self._every_s = every_s
        self.stop_seen = False
        """Whether this rank was asked to save and leave; all ranks agree after the next step."""
        self.live: dict[str, Any] = {"rates": {}, "resumed_from": "", "refused": [], "phases": {}}
        """What rank 0 publishes besides its step."""
        self.phase = "starting"
        self.step = 0
        self.ticks = 0
        self.files = 0
        """Work of the uploader, counted by its thread."""
        self._lines: list[str] = []
        self._segment, self._written = 1, 0
        self._dumped = False
        self._files = FileWatch(os.getpid())
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in WARNINGS:
                signal.signal(number, self._warn)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._guarded(self._write)

    def tick(self, phase: str) -> None:
        """Note that work was done; a rank whose ticks stand still hangs."""
        self.phase = phase
        self.ticks += 1

    def published(self) -> None:
        """Note that a publication got a little further."""
        self.files += 1

    def record(self, line: dict[str, Any]) -> None:
        """Keep one step's line for the next segment."""
        with self._lock:
            self._lines.append(json.dumps(line))

    def _warn(self, _signal: int, _frame: FrameType | None) -> None:
        self.stop_seen = True

    def _run(self) -> None:
        while not self._ended.is_set():
            self._guarded(self._write, self._obey_orders)
            self._ended.wait(self._every_s)

    def _guarded(self, *acts: Callable[[], None]) -> None:
        try:
            for act in acts:
                act()
        except (OSError, LedgerError):  # the store may be back at the next beat
            log.exception("rank %d: the attempt's folder is out of reach", self._rank_info.rank)

    def _write(self) -> None:
        beat = {
            "rank": self._rank_info.rank,
            "step": self.step,
            "phase": self.phase,
            "ticks": self.ticks,
            "files": self.files,
            "at": time.time(),
            "process": Process.current().__dict__,
            "waits_for": asdict(stuck) if (stuck := self._files.look()) else None,
        }
        self._record.replace(beat_path(self._rank_info.rank), json.dumps(beat).encode())
        if self._rank_info.rank == 0:
            self._record.replace(LIVE, json.dumps({"step": self.step, **self.live}).encode())
            self._write_segment()

    def _write_segment(self) -> None:
        """Write the segment under way, whole; a full one is followed by the next."""
        with self._lock:
            lines, rest = self._lines[:SEGMENT_LINES], self._lines[SEGMENT_LINES:]
        if len(lines) > self._written:
            data = "\n".join([*lines, ""]).encode()
            self._record.replace(f"metrics-{self._segment:04d}.jsonl", data)
            self._written = len(lines)
        if rest:
            with self._lock:
                del self._lines[:SEGMENT_LINES]
            self._segment, self._written = self._segment + 1, 0
            self._write_segment()

    def _obey_orders(self) -> None:
        orders = {f"orders/{name}" for name in self._record.children("orders")}
        self.stop_seen = self.stop_seen or STOP in orders
        if DUMP in orders and not self._dumped:
            self._dumped = True
            self._record.replace(stacks_path(self._rank_info.rank), stacks())
        if FAULT_ORDER in orders:
            self._suffer(self._record.read_json(FAULT_ORDER))

    def _suffer(self, fault: dict[str, Any]) -> None:
        """Kill or stop this process for a drill that names this rank or its whole node."""
        named = fault.get("rank") == self._rank_info.rank
        if named and fault["kind"] == "store":
            faults.break_store()
        elif named and fault["kind"] == "node":
            kill_node()
        elif named or fault.get("node") == socket.gethostname():
            os.kill(os.getpid(), signal.SIGSTOP if fault["kind"] == "hang" else signal.SIGKILL)


def stacks() -> bytes:
    """The Python stack of every thread of this process."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        return file.read()
