"""Faults on demand, for drills and tests: the places where a process may be made to die.

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


def _fault() -> dict[str, Any]:
    return _parsed(os.environ.get(VARIABLE, "null"))


@cache
def _parsed(text: str) -> dict[str, Any]:
    return json.loads(text) or {}


def passing(point: str, *, rank: int, step: int, driver_pid: int = 0) -> None:
    """Kill this rank or its driver, if that was asked for at this point, rank and step."""
    fault = _fault()
    if fault.get("kind") != "kill" or fault["point"] != point:
        return
    if fault["rank"] == rank and fault["step"] == step:
        victim = driver_pid if fault.get("victim") == "driver" else os.getpid()
        os.kill(victim, signal.SIGKILL)
        time.sleep(3600)  # a rank whose driver was killed gets no further than this


def poisoned(positions: np.ndarray) -> bool:
    """Whether one of a batch's positions was declared to give no finite loss."""
    fault = _fault()
    return fault.get("kind") == "nan" and bool(np.isin(positions, fault["positions"]).any())


def stalls(*, rank: int, step: int) -> bool:
    """Whether this rank is to stop itself after this step."""
    fault = _fault()
    return fault.get("kind") == "hang" and (fault["rank"], fault["step"]) == (rank, step)


_store_is_broken = threading.Event()


def break_store() -> None:
    """Let this process's next upload of a checkpoint fail, as `orchestrator chaos` asks."""
    _store_is_broken.set()


def uploading(num_bytes: int) -> None:
    """Wait as long as a slow store would take for so many bytes. Raises OSError in a drill."""
    if _store_is_broken.is_set():
        raise OSError(errno.EIO, "the store is out of reach (a drill)")
    fault = _fault()
    if fault.get("kind") == "slow_store":
        time.sleep(num_bytes / (fault["mb_per_s"] * 1e6))
