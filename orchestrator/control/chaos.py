"""A drill on a running training: inject one fault, wait until it is overcome, say what it cost.

The fault is an order in the attempt's folder that names a victim; the victim, wherever it runs,
kills or stops itself. So a drill needs no access to the nodes, and works alike on every backend.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from orchestrator.control.executor import observe
from orchestrator.control.request import start
from orchestrator.errors import (
    AlreadyExistsError,
    OrchestratorError,
    RequestError,
    RunFailedError,
)
from orchestrator.ledger import checkpoints
from orchestrator.ledger.artifact import Artifact
from orchestrator.ledger.attempt import FAULT_ORDER, AttemptFolder
from orchestrator.ledger.checkpoints import Manifest
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.store import Store
from orchestrator.plan.planner import Instance
from orchestrator.plan.stages import BY_NAME

Fault = Literal["rank", "driver", "node", "store", "hang", "byte"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
_POLL_S = 0.5
_END_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """A training under way."""

    instance: Instance
    attempt: AttemptFolder
    artifact: Artifact
    num_ranks: int
    step: int
    """Newest step that rank 0 has recorded."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a fault cost."""

    fault: Fault
    instance: str
    attempt: int
    """The attempt that was struck."""
    step: int
    """Last step that it recorded."""
    cause: str
    """What the supervisor took it for."""
    resumed_from: str
    """Checkpoint that the next attempt loaded; empty when there was none."""
    refused: tuple[str, ...]
    """Checkpoints that did not verify, and why."""
    steps_lost: int
    """Steps that had to be done again."""
    noticed_s: float
    """From the fault to the end of the attempt."""
    restarted_s: float
    """From there to the next attempt's start."""
    phases_s: Mapping[str, float]
    """From there to the first new step, by phase."""
    recovered_s: float
    """From the fault to the first new step."""


def find_target(run: RunFolder, store: Store, stage: str | None = None) -> Target:
    """The training of the run that is under way, or the one ``stage`` names.

    Raises RequestError when there is none.
    """
    if not observe(run).is_alive:
        raise RequestError(f"{run.name}: is not at work; `orchestrator resume {run.name}` first")
    for instance in run.plan().instances:
        if not (instance.answers_to(stage) and BY_NAME[instance.stage].has_ranks):
            continue
        attempts = run.attempts(instance.id)
        live = _live(attempts[-1]) if attempts and attempts[-1].end is None else None
        if live and "first_step" in live["phases"]:
            return Target(
                instance=instance,
                attempt=attempts[-1],
                artifact=store.artifact(instance.stage, instance.key),
                num_ranks=len(attempts[-1].storage.children("beats")),
                step=live["step"],
            )
    raise RequestError(
        f"{run.name}: no training has made a step yet, or all are done; a drill needs one under way"
    )


def strike(run: RunFolder, target: Target, fault: Fault, rank: int) -> float:
    """Inject the fault; when that was, in seconds since the epoch.

    Raises RequestError for a rank that does not exist, or a checkpoint that is not there yet.
    """
    if not 0 <= rank < target.num_ranks:
        raise RequestError(f"--rank {rank}: this training has ranks 0..{target.num_ranks - 1}")
    order: dict[str, Any] = {"kind": fault, "rank": rank}
    if fault == "driver":
        order = {"kind": fault}
    if fault == "node":
        order = {"kind": fault, "node": _host_of(target, rank)}
    struck_at = time.time()
    try:
        target.attempt.storage.create_json(FAULT_ORDER, order)
    except AlreadyExistsError:
        raise RequestError(f"{run.name}: another drill strikes this attempt already") from None
    if fault == "byte":  # once nobody writes any more, and before the next attempt reads
        _await_end(target)
        flip_a_byte(target.artifact.storage, _newest_checkpoint(target.artifact))
    supervisor = run.live_supervisor()
    if fault == "node" and supervisor and _name(supervisor.started) == order["node"]:
        supervisor.storage.create_json(FAULT_ORDER, order)
    return struck_at


def await_recovery(
    run: RunFolder,
    store: Store,
    target: Target,
    fault: Fault,
    struck_at: float,
    timeout_s: float,
    on_resume: Callable[[], None] = lambda: None,
) -> Outcome:
    """Wait for the first new step, resuming the run where nothing else will.

    ``on_resume`` is called when that was needed.

    Raises RunFailedError when it does not come in time, or the run gives up.
    """
    look_at = time.monotonic()
    deadline = look_at + timeout_s
    while time.monotonic() < deadline:
        time.sleep(_POLL_S)
        following = [
            a for a in run.attempts(target.instance.id) if a.number > target.attempt.number
        ]
        live = _live(following[-1]) if following else None
        if live and "first_step" in live["phases"]:
            return _outcome(target, following[-1], live, fault, struck_at)
        if target.artifact.is_complete():
            raise RequestError(f"{run.name}: the training ended before the fault could act")
        end = (following or (target.attempt,))[-1].end
        if end and end.get("action") == "stop":
            raise RunFailedError(f"{run.name}: gave up after the fault: {end['reason']}")
        if time.monotonic() >= look_at:
            observed = observe(run)
            look_at = time.monotonic() + observed.look_every_s
            if not observed.is_alive and time.time() - struck_at > 2 * _POLL_S:
                start(run, store)
                on_resume()
    raise RunFailedError(
        f"{run.name}: no new step within {timeout_s:.0f} s; see `orchestrator status {run.name}`"
    )


def _await_end(target: Target) -> None:
    deadline = time.monotonic() + _END_TIMEOUT_S
    while target.attempt.end is None:
        if time.monotonic() > deadline:
            raise RunFailedError(f"{target.instance.id}: the rank was not killed; is it stuck?")
        time.sleep(_POLL_S / 10)


def flip_a_byte(out: Storage, manifest: Manifest) -> str:
    """Change one byte of the smallest file of a checkpoint; which file."""
    folder, files = checkpoints.folder_of(out, manifest), manifest.files
    path = min(files, key=lambda name: (files[name].size, name))
    data = bytearray(folder.read_bytes(path))
    data[secrets.randbelow(len(data))] ^= 1
    folder.replace(path, bytes(data))
    return path


def _newest_checkpoint(artifact: Artifact) -> Manifest:
    if found := checkpoints.committed(artifact.storage):
        return found[-1]
    raise RequestError(f"{artifact.storage.url}: has no checkpoint yet; strike again later")


def _outcome(
    target: Target,
    following: AttemptFolder,
    live: Mapping[str, Any],
    fault: Fault,
    struck_at: float,
) -> Outcome:
    end = target.attempt.end or {}
    ended_at = end.get("ended_at", following.started["started_at"])
    phases = {name: float(seconds) for name, seconds in live["phases"].items()}
    first = next(following.steps(), None)
    new_at = first["at"] if first else time.time()
    resumed_step = checkpoints.step_of(live["resumed_from"])
    # The last steps of what was killed are not recorded: a checkpoint may be newer than they.
    recorded = (step["step"] for step in target.attempt.steps())
    last = max((target.step, resumed_step, *recorded))
    return Outcome(
        fault=fault,
        instance=target.instance.id,
        attempt=target.attempt.number,
        step=last,
        cause=end.get("cause", "node_lost"),
        resumed_from=live["resumed_from"],
        refused=tuple(live["refused"]),
        steps_lost=last - resumed_step,
        noticed_s=ended_at - struck_at,
        restarted_s=new_at - ended_at - sum(phases.values()),
        phases_s=phases,
        recovered_s=new_at - struck_at,
    )


def _live(attempt: AttemptFolder) -> dict[str, Any] | None:
    try:
        live: dict[str, Any] = attempt.storage.read_json("live.json")
    except (FileNotFoundError, OrchestratorError):
        return None
    return live


def _host_of(target: Target, rank: int) -> str:
    return _name(target.attempt.storage.read_json(f"beats/rank-{rank:05d}.json"))


def _name(record: Mapping[str, Any]) -> str:
    """The machine's name in what a process says of itself."""
    return str(record["process"]["host"].split("/")[0])
