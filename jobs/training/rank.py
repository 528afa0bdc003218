"""What one training rank is told, where it stands among the others, and when it ends by itself.

Everything here is plain data that crosses processes as JSON, so that a launcher needs to know
nothing of training and training nothing of launchers.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt

from jobs.disk import disk_sentence
from orchestrator.errors import (
    Cause,
    ExitCode,
    LeaseHeldError,
    OrchestratorError,
    RunFailedError,
    cause_of,
)
from orchestrator.ledger import last_words
from orchestrator.ledger.attempt import LAST_RANK
from orchestrator.ledger.lease import Process
from orchestrator.ledger.storage import Storage, to_json
from orchestrator.plan.mixture import Stream
from orchestrator.spec.model import Spec
from orchestrator.spec.recipe import Checkpoint, Execution, Optimizer

_WATCH_EVERY_S = 1.0
_LOST_PEER = re.compile(
    r"gloo|NCCL|Dist(Backend|Network|Store)Error|Connection (closed|reset|refused)|Broken pipe"
)
"""What the error of a rank says that merely lost another one."""
_FAILURE = ".failure.json"


class TrainingSettings(Spec):
    """What every training has: how long, in what batches, how it is optimized and made durable."""

    steps: PositiveInt
    """Optimizer steps."""
    global_batch: PositiveInt
    """Samples of one optimizer step, over all ranks."""
    seed: int
    """Seed of weights and of the order of samples."""
    mixture: tuple[Stream, ...] = ()
    """The streams that the task's samples lie in, one after the other; empty for no mixture."""
    optimizer: Optimizer = Optimizer()
    """AdamW's settings."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of forward and backward; optimizer state is fp32."""
    checkpoint: Checkpoint = Checkpoint()
    """When training state is saved."""
    validate_every_steps: PositiveInt = 500
    """Steps between validations; the last step is always validated."""
    max_nonfinite_in_row: NonNegativeInt = 3
    """Steps in a row whose loss or gradient is not finite that are passed over."""


class RankConfig(Spec):
    """One training, as every one of its ranks is told."""

    task: str
    """What is trained: ``module:Class`` of a `jobs.training.task.Task`."""
    spec: dict[str, Any]
    """What that class wants to know, as plain JSON."""
    settings: TrainingSettings
    """What every training has."""
    execution: Execution
    """How a global batch is computed."""
    section: str = "train"
    """Section of the recipe that messages point at."""
    out_url: str
    """Folder of the train artifact."""
    lease_n: int
    """Fencing number of this attempt."""
    folder: str
    """Local folder of this attempt: rank logs."""
    record_url: str
    """Folder of this attempt in the store: beats, metric lines, orders."""
    scratch: str
    """Folder on each node's own disk, the same for all attempts at this key."""
    tracker: str
    """Id of the training's curves, the same for all its attempts."""
    mtbf_s: float = 86_400.0
    """Mean time between failures of the whole job, in seconds."""
    wait_s: float = 7200.0
    """Longest wait of ranks for each other, in seconds: beyond what the driver takes for a hang."""
    notice_s: float = 90.0
    """How long the ranks have to publish once they were asked to stop, in seconds."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Kind of device."""
    threads: int = 1
    """Intra-op threads of a CPU rank."""
    driver: Process
    """The process that started the ranks; they end when it does."""

    @property
    def leases(self) -> tuple[int, ...]:
        """Fencing numbers whose checkpoints may be loaded."""
        return tuple(range(1, self.lease_n + 1))


@dataclass(frozen=True, kw_only=True)
class RankInfo:
    """Where a rank stands."""

    rank: int
    """Number among all ranks."""
    world_size: int
    """Ranks in all."""
    local_rank: int
    """Number among the ranks of this node."""
    local_world_size: int
    """Ranks on this node."""


def end_with(driver: Process) -> None:
    """Watch the driver from a thread and leave at once when it is gone.

    A rank whose driver died holds memory, a device and a port that the next attempt needs. On other
    machines than the driver's the question cannot be asked; there the broken connection to the
    first rank ends the process.
    """
    if driver.is_alive() is None:
        return
    threading.Thread(target=_watch, args=(driver,), daemon=True).start()


def _watch(driver: Process) -> None:
    while driver.is_alive():
        time.sleep(_WATCH_EVERY_S)
    sys.stderr.write("the driver of this training is gone; leaving\n")
    sys.stderr.flush()
    os._exit(ExitCode.ORPHANED)


def log_path(folder: Path, rank: int) -> Path:
    """The log of one rank."""
    return folder / f"rank-{rank:05d}.log"


def log_to(path: Path) -> None:
    """Send everything this process prints, native libraries included, to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    # A launcher may have replaced Python's streams by its own, which would not follow the
    # descriptors.
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def last_lines(path: Path, count: int = 20) -> str:
    """The end of a log, for an error message."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return "(no log was written)"
    return "\n".join(lines[-count:])


def last_line(error: object) -> str:
    """What an error says at its end, where the exception itself stands."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


@contextmanager
def failure_recorded(
    config: RankConfig, rank_info: RankInfo, storage: Storage | None = None
) -> Iterator[None]:
    """Write into the attempt's folder why this rank fails, where `failure` finds it."""
    try:
        yield
    except Exception as error:
        report = {
            "rank": rank_info.rank,
            "at": time.time(),
            "cause": cause_of(error),
            "message": disk_sentence(error),
        }
        path = f"rank-{rank_info.rank:05d}{_FAILURE}"
        try:
            (storage or Storage(config.record_url)).replace(path, to_json(report))
        except OSError:  # the log, too, may lie in the store that is full
            last_words.leave(config.record_url, LAST_RANK, report)
        raise


def most_telling(config: RankConfig, suspect: int | None = None) -> dict[str, Any] | None:
    """The report of the rank that knows best why the training failed; None when none is there.

    Ranks fail by losing each other: a cause comes before an error, an error before a broken
    connection, then the suspect, then the first.
    """
    return min(
        _reports(config),
        key=lambda r: (_vagueness(r), r["rank"] != suspect, r["at"]),
        default=None,
    )


def _vagueness(report: dict[str, Any]) -> int:
    if report["cause"] != Cause.ERROR:
        return 0
    return 2 if _LOST_PEER.search(report["message"]) else 1


def failure(
    config: RankConfig, world_size: int, how: str, rank: int | None = None, *, is_lost: bool = True
) -> OrchestratorError:
    """The error of a training that lost ``rank``, or some rank: its cause, the end of its log.

    The rank that knows a cause is heard before the one that is suspected. ``is_lost``: the rank was
    ended from outside, which is the cause unless another rank knows one.
    """
    told = most_telling(config, rank)
    if told and told["cause"] == Cause.ERROR and is_lost and rank is not None:
        told = None
    if told and told["cause"] == Cause.LEASE_HELD:
        return LeaseHeldError(told["message"])
    ranks = [told["rank"]] if told else range(world_size) if rank is None else [rank]
    paths = [log_path(Path(config.folder), r) for r in ranks]
    # When one rank dies the others fail after it, by losing it: its log ended first.
    written = [path for path in paths if path.exists()]
    path = min(written, key=lambda p: p.stat().st_mtime, default=paths[0])
    message = f": {told['message']}" if told and told["message"] not in how else ""
    return RunFailedError(
        f"the last lines of {path}:\n{last_lines(path)}\n"
        f"{config.section}: a rank failed ({how}){message}",
        cause=Cause(told["cause"]) if told else Cause.WORKER_LOST if is_lost else Cause.ERROR,
    )


def _reports(config: RankConfig) -> list[dict[str, Any]]:
    """Those in the attempt's folder, and the last that only this machine could keep."""
    storage, reports = Storage(config.record_url), list[dict[str, Any]]()
    with suppress(OSError):
        for name in (n for n in storage.children() if n.endswith(_FAILURE)):
            with suppress(OSError, OrchestratorError):
                reports.append(storage.read_json(name))
    kept = last_words.find(config.record_url, LAST_RANK)
    return [*reports, kept] if kept else reports


def free_port() -> int:
    """A TCP port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
