"""Lets a recipe's trackers follow a training, or learn its scores, without waiting for them.

Each tracker is a process (`jobs.training.tracking`) with a time to end in; one that fails or hangs
is an event of the attempt, ``tracking_failed``, and changes nothing else.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any

from jobs.attempt import Attempt
from jobs.training.rank import RankConfig
from jobs.training.trackers import Kind, Tracked
from jobs.training.tracking import FINISH, Job, Training
from orchestrator.errors import os_words
from orchestrator.ledger import checkpoints
from orchestrator.ledger.attempt import CURVES, OFFLINE_CURVES
from orchestrator.ledger.storage import Storage
from orchestrator.plan.keys import flatten

FINISH_S = 60.0
"""How long a tracker may take for what is left once a training is over."""
HURRY_S = 3.0
"""The same when the training did not come to its end: the next attempt sends the rest."""


class TrackerProcess:
    """One tracker at work."""

    def __init__(self, job: Job) -> None:
        self.kind = job.kind
        self._answer: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (open until `end`)
        argv = [sys.executable, "-m", "jobs.training.tracking"]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=self._answer, start_new_session=True
        )
        self._tell(job.model_dump_json())

    def finish(self) -> None:
        """Tell it that nothing more will be committed."""
        self._tell(FINISH)

    def end(self, timeout_s: float, since: float) -> str:
        """What went wrong, once it has ended, or was made to; empty for nothing.

        It has ``timeout_s`` from ``since`` on, a monotonic time.
        """
        try:
            code = self._process.wait(max(since + timeout_s - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            code, late = 1, f"was not done within {timeout_s:g} s"
        else:
            late = f"ended with exit code {code}"
        with suppress(ProcessLookupError):  # processes of its library, too
            os.killpg(self._process.pid, signal.SIGKILL)
        assert self._process.stdin
        with suppress(OSError):  # what it was told at the last, and did not live to read
            self._process.stdin.close()
        with self._answer, self._process:
            self._answer.seek(0)
            said = self._answer.read().decode(errors="replace").strip()
        return (said or late) if code else ""

    def _tell(self, line: str) -> None:
        assert self._process.stdin
        with suppress(OSError):  # it has ended already, and `end` says how
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()


@contextmanager
def tracked(attempt: Attempt, config: RankConfig) -> Iterator[None]:
    """Let the recipe's trackers follow a training while it lasts."""
    training = Training(
        out_url=config.out_url, record_url=config.record_url, lease_n=config.lease_n
    )
    processes = _started(attempt, jobs_of(attempt, attempt.out, training=training))
    timeout_s = HURRY_S
    try:
        yield
        timeout_s = FINISH_S
    finally:
        _end(attempt, processes, timeout_s)


def track_scores(attempt: Attempt, scores: Mapping[str, Any]) -> None:
    """Tell the recipe's trackers what the model of a training is worth: all numbers, by name."""
    numbers = {
        f"scores/{name.replace('.', '/')}": float(value)
        for name, value in flatten(scores).items()
        if isinstance(value, int | float)
    }
    trained = attempt.upstream["train"].storage
    jobs = jobs_of(attempt, trained, scores=numbers, step=attempt.recipe.train.steps)
    _end(attempt, _started(attempt, jobs), FINISH_S)


def kinds(attempt: Attempt) -> Iterator[Kind]:
    """The trackers that a recipe asks for."""
    tracking = attempt.recipe.tracking
    asked: dict[Kind, object] = {
        "tensorboard": tracking.tensorboard,
        "wandb": tracking.wandb,
        "mlflow": tracking.mlflow,
    }
    yield from (kind for kind, value in asked.items() if value)


def jobs_of(attempt: Attempt, artifact: Storage, **what: Any) -> Iterator[Job]:
    """What each tracker is to do for the training that an artifact is of."""
    beside = attempt.folder.parent.parent.resolve()
    for kind in kinds(attempt):
        tracked = Tracked(
            id=checkpoints.curves_id(artifact),
            name=attempt.name,
            tracking=attempt.recipe.tracking,
            params=attempt.recipe.model_dump(mode="json", exclude={"tracking"}),
            folder=str(beside / (CURVES if kind == "tensorboard" else OFFLINE_CURVES)),
        )
        yield Job(kind=kind, tracked=tracked, **what)


def _started(attempt: Attempt, jobs: Iterable[Job]) -> list[TrackerProcess]:
    processes = []
    for job in jobs:
        try:
            processes.append(TrackerProcess(job))
        except OSError as error:
            attempt.event("tracking_failed", tracker=job.kind, reason=os_words(error))
    return processes


def _end(attempt: Attempt, processes: list[TrackerProcess], timeout_s: float) -> None:
    """All of them at once, so that together they take no longer than one."""
    since = time.monotonic()
    for process in processes:
        process.finish()
    for process in processes:
        if problem := process.end(timeout_s, since):
            attempt.event("tracking_failed", tracker=process.kind, reason=problem)
