"""One tracker of one training, in a process of its own: what it costs or breaks is nobody else's.

Sends what is committed and nothing else, so that no curve goes back when a training does. In: one
line of JSON, `Job`, and ``finish`` once nothing more will be committed. Out: nothing, or one line
that says what went wrong, without any secret. When the driver is gone it ends at once: the next
attempt sends what is missing.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO

from jobs.training.trackers import TRACKERS, Kind, Row, Tracked, Tracker, export_references
from orchestrator.errors import LedgerError, os_words
from orchestrator.ledger import checkpoints
from orchestrator.ledger import lease as leases
from orchestrator.ledger.attempt import AttemptFolder
from orchestrator.ledger.checkpoints import Segment
from orchestrator.ledger.storage import Storage
from orchestrator.spec.model import Spec, variable_in

FINISH = "finish"
POLL_S = 5.0
_TRAINED = ("loss", "grad_norm", "lr")
_VALIDATED = ("loss",)
_TIMES = {"step", "sample_hash", "at", "step_s", "stall_s"}
"""Fields of an attempt's line that are no rates."""
_SHORTEST_SECRET = 4
"""Fewer characters hide nothing, and stand everywhere."""

Line = Mapping[str, Any]


class Training(Spec):
    """Where a training's committed steps are read."""

    out_url: str
    """Folder of the train artifact."""
    record_url: str
    """Folder of this attempt: when its steps ended, and how fast they were."""
    lease_n: int
    """Fencing number of this attempt."""


class Job(Spec):
    """What one process sends."""

    kind: Kind
    """Which tracker."""
    tracked: Tracked
    """The training as it is shown."""
    training: Training | None = None
    """Whose steps are followed to their end."""
    scores: dict[str, float] | None = None
    """Instead: what the finished model is worth, by name."""
    step: int = 0
    """Last step of the model that was scored."""


class Chain:
    """The committed steps of a training, each once."""

    def __init__(self, training: Training) -> None:
        self._out, self._lease_n = Storage(training.out_url), training.lease_n
        self._attempt = AttemptFolder(0, Storage(training.record_url))
        self._read: set[str] = set()
        self._due: tuple[list[Line], list[Line]] = [], []

    def new_rows(self) -> list[Row]:
        """Rows of what was committed between the last two calls: by now its times are known.

        Raises LeaseHeldError when this attempt has lost its right to work, OSError or LedgerError
        when the store cannot be read; then nothing is lost.
        """
        metrics, validation = self._due
        timed = list(self._attempt.steps()) if metrics else []
        self._due = self._committed()
        return list(rows(metrics, validation, timed))

    def _committed(self) -> tuple[list[Line], list[Line]]:
        """Metric and validation lines that are new on the chain of the newest checkpoint."""
        leases.require_newest(self._out, self._lease_n)
        found = checkpoints.committed(self._out)
        ours = checkpoints.resumable(found, range(1, self._lease_n + 1))
        if not ours:
            return [], []
        new = [self._unread(chain) for chain in (ours[0].metrics, ours[0].validation)]
        metrics, validation = (self._lines(segments) for segments in new)
        self._read.update(segment.path for segments in new for segment in segments)
        return metrics, validation

    def _unread(self, chain: Iterable[Segment]) -> list[Segment]:
        return [segment for segment in chain if segment.path not in self._read]

    def _lines(self, segments: list[Segment]) -> list[Line]:
        return [
            json.loads(line) for line in checkpoints.join_segments(self._out, segments).splitlines()
        ]


def rows(
    metrics: Iterable[Line], validation: Iterable[Line], timed: Iterable[Line]
) -> Iterator[Row]:
    """What each step's lines say, as curves: ``train/…``, ``valid/…``.

    Where an attempt has timed a step, its rates as well.
    """
    validated = {line["step"]: line for line in validation}
    of_attempt = {line["step"]: line for line in timed}
    for line in metrics:
        step, own = line["step"], of_attempt.get(line["step"], {})
        rates = own.keys() - _TIMES - line.keys()
        stall = {"checkpoint_stall_s": own["stall_s"]} if own.get("stall_s") else {}
        train = {n: line.get(n) for n in _TRAINED} | {n: own[n] for n in sorted(rates)} | stall
        valid = {n: validated[step][n] for n in _VALIDATED} if step in validated else {}
        named = {f"train/{n}": v for n, v in train.items()}
        named |= {f"valid/{n}": v for n, v in valid.items()}
        known = {name: float(value) for name, value in named.items() if value is not None}
        yield Row(step, float(own.get("at", time.time())), known)


def follow(chain: Chain, tracker: Tracker, ended: threading.Event, poll_s: float = POLL_S) -> None:
    """Send what is committed, until nothing more will be."""
    while not ended.wait(poll_s):
        _send(chain, tracker)
    for _ in range(2):  # what is due, and what has become so
        tracker.send(chain.new_rows())


def _send(chain: Chain, tracker: Tracker) -> None:
    try:
        new = chain.new_rows()
    except (OSError, LedgerError):  # the store may be back at the next look
        return
    tracker.send(new)


def run(job: Job, ended: threading.Event) -> None:
    """Do what a job says. Raises whatever its tracker's library does."""
    export_references(job.tracked.tracking)
    with TRACKERS[job.kind](job.tracked) as tracker:
        if job.training:
            follow(Chain(job.training), tracker, ended)
        if job.scores:
            tracker.score(job.step, job.scores)


def without_secrets(text: str, job: Job) -> str:
    """The first line of a text, with the names of variables in place of what they hold.

    Of an address any part may be quoted alone.
    """
    for reference in job.tracked.tracking.references.values():
        name = variable_in(reference)
        for part in _parts(os.environ.get(name, "")):
            text = text.replace(part, f"${name}")
    return (text.strip().splitlines() or [""])[0]


def _parts(value: str) -> list[str]:
    """A value and the parts of the address that it may be, longest first."""
    parts = [value, value.partition("://")[2], *re.split(r"[/:@?&=]+", value)]
    return sorted({p for p in parts if len(p) >= _SHORTEST_SECRET}, key=len, reverse=True)


def main() -> int:
    """Run the job of stdin; 1 when it could not be done."""
    answer = _keep_quiet()
    job, ended = Job.model_validate_json(sys.stdin.readline()), threading.Event()
    threading.Thread(target=_listen, args=(ended,), daemon=True).start()
    try:
        run(job, ended)
    except Exception as error:  # noqa: BLE001 (libraries of others: their error is what is told)
        words = (
            os_words(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        )
        print(without_secrets(words, job), file=answer, flush=True)
        return 1
    return 0


def _keep_quiet() -> TextIO:
    """Where our one line goes; what libraries print goes nowhere."""
    answer = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return answer


def _listen(ended: threading.Event) -> None:
    """Learn that nothing more will be committed; with the driver gone, end the whole group."""
    if sys.stdin.readline().strip() == FINISH:
        ended.set()
    else:
        os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
