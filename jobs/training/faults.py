"""Faults on demand, for drills and tests: the places where a process may be told to die.

``$ORCHESTRATOR_FAULT`` holds JSON such as ``{"kind": "kill", "point": "commit.manifest", "rank": 0,
"step": 8, "victim": "driver"}``. Without it, every call here returns at once.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from functools import cache
from typing import Any

import numpy as np

VARIABLE = "ORCHESTRATOR_FAULT"

RANK_POINTS = (
    "save.begin",  # nothing of the checkpoint is written
    "save.written",  # DeepSpeed has written its files to the node's disk
    "save.staged",  # so have we the random states; training goes on from here
    "publish.begin",  # the uploader takes it up
    "publish.file",  # one of this rank's files is in the store
    "publish.files",  # all of them are
    "publish.done",  # and the note that says so
)
"""Passed by every rank with every checkpoint."""

LEADER_POINTS = (
    "commit.gathered",  # every rank's note is there
    "commit.metrics",  # the metric lines are in the store
    "commit.manifest",  # the checkpoint exists
    "retire.begin",  # there is something to remove
    "retire.manifest",  # the old checkpoint exists no more
    "retire.file",  # one of its files is gone
    "retire.end",  # all of it is
)
"""Passed by rank 0 alone."""


@cache
def _told() -> dict[str, Any]:
    return json.loads(os.environ.get(VARIABLE, "null")) or {}


def passing(point: str, *, rank: int, step: int, driver_pid: int = 0) -> None:
    """Kill this rank or its driver, if that was asked for at this point, rank and step."""
    told = _told()
    if told.get("kind") != "kill" or told["point"] != point:
        return
    if told["rank"] == rank and told["step"] == step:
        victim = driver_pid if told.get("victim") == "driver" else os.getpid()
        os.kill(victim, signal.SIGKILL)
        time.sleep(3600)  # a rank whose driver was killed gets no further than this


def poisoned(positions: np.ndarray) -> bool:
    """Whether one of a batch's positions was declared to give no finite loss."""
    told = _told()
    return told.get("kind") == "nan" and bool(np.isin(positions, told["positions"]).any())


def stalls(*, rank: int, step: int) -> bool:
    """Whether this rank was told to stop itself after this step."""
    told = _told()
    return told.get("kind") == "hang" and (told["rank"], told["step"]) == (rank, step)


_store_is_broken = threading.Event()


def break_store() -> None:
    """Let this process's next upload of a checkpoint fail, as `orchestrator chaos` asks."""
    _store_is_broken.set()


def uploading(num_bytes: int) -> None:
    """Wait as long as a slow store would take for so many bytes. Raises OSError in a drill."""
    if _store_is_broken.is_set():
        raise OSError(errno.EIO, "the store is out of reach (a drill)")
    told = _told()
    if told.get("kind") == "slow_store":
        time.sleep(num_bytes / (told["mb_per_s"] * 1e6))
