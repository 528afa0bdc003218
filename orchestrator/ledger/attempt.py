"""One attempt's folder: who started it, how far it is, what happened, how it ended.

runs/<run>/stages/<instance>/attempts/0002/
    attempt.json        who started it, where; written first
    progress.json       how far it is, overwritten as it goes
    events-0001.jsonl   what happened, in whole numbered segments
    failing-nodes/n7      a node on which workers die alone
    waits.json            what it waits for, while it does
    nodes.json            how many nodes its ranks had, and from when on
    beats/rank-00000.json  metrics-0001.jsonl  orders/…    of a training
    driver.log rank-00000.log …
    end.json            how it ended; written last, exclusively
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import AlreadyExistsError, Cause, CorruptError
from orchestrator.ledger import last_words
from orchestrator.ledger.lease import Process
from orchestrator.ledger.records import find_record, record_at, understood
from orchestrator.ledger.storage import Storage, to_json

DRIVER_LOG = "driver.log"
CURVES = "tensorboard"
"""Beside an instance's attempts, so that they share it: the curves of a training."""
OFFLINE_CURVES = "wandb"
"""The same for another tracker, to be sent to it later."""
LOCAL_FOLDER = "ORCHESTRATOR_ATTEMPT_FOLDER"
"""Environment variable with the local folder of an attempt's logs."""
NODE_NAME = "ORCHESTRATOR_NODE"
"""Environment variable with the scheduler's name of the node that a process is on."""
FAULT_ORDER = "orders/fault.json"
"""In an attempt's folder: a drill, with the kind of fault and whom it strikes."""
DRAINED = "drained"
"""In a drill: the host that is taken back by its cloud."""

_STARTED, _END = "attempt.json", "end.json"
_LAST_END, _LAST_FAILURE = "end", "failed"
LAST_RANK = "rank"
"""What this machine keeps of an attempt whose folder takes no word: why one of its ranks failed."""
_FAILING = "failing-nodes"
_WAITS, _NODES = "waits.json", "nodes.json"
_REMEDY = "move the attempt's folder away"
_STEP_TIMES = {"step", "at", "step_s", "stall_s"}
"""What a step's line must have to say where time went; the first runs wrote lines without."""


@dataclass(frozen=True)
class AttemptFolder:
    """The folder of one attempt of one stage instance, or of the supervisor."""

    number: int
    storage: Storage

    @classmethod
    def of(cls, run: Storage, instance: str, number: int) -> AttemptFolder:
        """That of one attempt, in a run's folder."""
        return cls(number, run.at("stages", instance, "attempts", f"{number:04d}"))

    @property
    def started(self) -> dict[str, Any]:
        """Who started it, where and when."""
        return record_at(self.storage, _STARTED, _REMEDY)

    @property
    def started_at(self) -> float:
        """When it was started, in seconds since the epoch. Raises CorruptError."""
        with understood(f"{self.storage.url}/{_STARTED}", _REMEDY):
            return float(self.started["started_at"])

    @property
    def process(self) -> Process:
        """Who works on it, where whoever started it has said so. Raises CorruptError."""
        with understood(f"{self.storage.url}/{_STARTED}", _REMEDY):
            return Process.from_json(self.started["process"])

    @property
    def end(self) -> dict[str, Any] | None:
        """How it ended; None while that is not recorded, be it on this machine alone.

        Raises CorruptError.
        """
        recorded = find_record(self.storage, _END, _REMEDY)
        if recorded is None:
            return last_words.find(self.storage.url, _LAST_END)
        with understood(f"{self.storage.url}/{_END}", _REMEDY):
            return {**recorded, "ended_at": float(recorded["ended_at"])}

    @property
    def progress(self) -> dict[str, Any]:
        """How far it is; empty before the first word."""
        return find_record(self.storage, "progress.json", _REMEDY) or {}

    @property
    def failure(self) -> dict[str, Any]:
        """The driver's own last event of a failure: ``cause``, ``message``; empty without one."""
        recorded = next((e for e in reversed(list(self.events())) if e["kind"] == "failed"), None)
        return recorded or last_words.find(self.storage.url, _LAST_FAILURE) or {}

    @property
    def failing_nodes(self) -> tuple[str, ...]:
        """The scheduler's names of nodes on which workers died while those on others went on."""
        return self.storage.children(_FAILING)

    def note_failing_node(self, node: str) -> None:
        """Say that its workers die on a node, while those on others go on."""
        self.storage.replace(f"{_FAILING}/{node}", b"")

    @property
    def waits(self) -> str:
        """What it waits for, as its cluster puts it; empty for nothing."""
        return str((find_record(self.storage, _WAITS, _REMEDY) or {}).get("for", ""))

    def note_waits(self, reason: str) -> None:
        """Say what it waits for; empty for nothing any more."""
        self.storage.replace(_WAITS, to_json({"at": time.time(), "for": reason}))

    @property
    def nodes(self) -> tuple[tuple[float, int], ...]:
        """How many nodes its ranks had, each number from a time in seconds since the epoch on."""
        rows = (find_record(self.storage, _NODES, _REMEDY) or {}).get("nodes", ())
        return tuple((float(at), int(number)) for at, number in rows)

    def note_nodes(self, number: int) -> None:
        """Say how many nodes its ranks have from now on."""
        rows = (*self.nodes, (time.time(), number))
        self.storage.replace(_NODES, to_json({"nodes": rows}))

    def record_failure(self, cause: Cause, message: str) -> None:
        """Write the driver's last event, durably, as the next segment.

        Raises OSError when the store does not take it; this machine keeps it then.
        """
        event = {"at": time.time(), "kind": "failed", "cause": cause, "message": message}
        try:
            number = 1 + sum(name.startswith("events-") for name in self.storage.children())
            self.storage.create(f"events-{number:04d}.jsonl", f"{json.dumps(event)}\n".encode())
        except OSError:
            last_words.leave(self.storage.url, _LAST_FAILURE, event)
            raise

    def finish(self, **how: Any) -> None:
        """Write end.json exclusively; the first writer wins.

        Raises OSError when the store does not take it; this machine keeps it then.
        """
        try:
            with suppress(AlreadyExistsError):
                self.storage.create_json(_END, {"ended_at": time.time(), **how})
        except OSError:
            self.keep_end(**how)
            raise
        self.forget()

    def keep_end(self, **how: Any) -> None:
        """Let this machine keep how it ended, without asking the store."""
        last_words.leave(self.storage.url, _LAST_END, {"ended_at": time.time(), **how})

    def forget(self) -> None:
        """Let this machine keep no words about it."""
        last_words.forget(self.storage.url, _LAST_END, _LAST_FAILURE, LAST_RANK)

    def settle(self) -> None:
        """Write the end that this machine has kept, now that the store takes it."""
        if kept := last_words.find(self.storage.url, _LAST_END):
            self.finish(**kept)

    def last_sign(self, *also: float) -> float:
        """When it last wrote anything down, in seconds since the epoch, or the latest ``also``."""
        written = (self.progress.get("at", 0.0), *(event["at"] for event in self.events()))
        return max(self.started_at, *map(float, written), *also)

    def events(self) -> Iterator[dict[str, Any]]:
        """All events in order."""
        yield from self.events_of(set())

    def events_of(self, read: set[str]) -> list[dict[str, Any]]:
        """The events of all segments that are not in ``read``, which grows by them."""
        names = [n for n in self.storage.children() if n.startswith("events-") and n not in read]
        found: list[dict[str, Any]] = []
        for name in names:
            with understood(f"{self.storage.url}/{name}", _REMEDY):
                lines = self.storage.read_bytes(name).decode().splitlines()
                events = [json.loads(line) for line in lines]
                found += [{**event, "kind": event["kind"]} for event in events]
        read.update(names)
        return found

    def steps(self) -> Iterator[dict[str, Any]]:
        """The lines of all optimizer steps in order, of those that say when a step ended.

        A last line of a segment that was torn when its writer was killed is left out. Raises
        CorruptError when any other line does not parse.
        """
        for name in self.storage.children():
            if name.startswith("metrics-"):
                for line in self._whole_lines(name):
                    if isinstance(line, dict) and line.keys() >= _STEP_TIMES:
                        yield line

    def _whole_lines(self, name: str) -> Iterator[Any]:
        lines = self.storage.read_bytes(name).splitlines()
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                if number < len(lines):
                    raise CorruptError(
                        f"{self.storage.url}/{name}: line {number} is not valid JSON ({error}); "
                        "remove that line"
                    ) from None
