"""A drill on a running training: inject one fault, wait until it is overcome, say what it cost.

The fault is an order in the attempt's folder that names a victim; the victim, wherever it runs,
kills or stops itself; a node that its cloud is to take back is drained by the driver. So a drill
needs no access to the nodes, and works alike on every backend. A Ray cluster's head alone is killed
from here, which then must be the head: whoever starts it anew resumes what was on it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from orchestrator.control.executor import executor_of, observe
from orchestrator.control.request import start
from orchestrator.errors import (
    AlreadyExistsError,
    OrchestratorError,
    RequestError,
    RunFailedError,
)
from orchestrator.ledger import checkpoints
from orchestrator.ledger.attempt import DRAINED, FAULT_ORDER, AttemptFolder
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store
from orchestrator.plan.stages import BY_NAME

Fault = Literal["rank", "driver", "node", "spot", "head", "store", "hang", "byte"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
_POLL_S = 0.5
_END_TIMEOUT_S = 120.0


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


class Drill:
    """One fault in a training that is under way."""

    def __init__(
        self, run: RunFolder, store: Store, fault: Fault, stage: str | None = None
    ) -> None:
        """The first training of the run that is under way, or the one ``stage`` names.

        Raises RequestError when there is none.
        """
        chosen = run.chosen(stage)
        if not observe(run).is_alive:
            run.require_here("chaos")
            raise RequestError(
                f"{run.name}: is not at work; `orchestrator resume {run.name}` first"
            )
        if fault == "spot" and not run.cluster().nodes_come_and_go:
            raise RequestError(
                f"{run.name}: --kill spot is for nodes of a Ray cluster; use --kill node"
            )
        self._executor = executor_of(run.cluster())
        if fault == "head":
            self._executor.require_head(run)
        self.run, self._store, self._fault = run, store, fault
        self.struck_at = 0.0
        for instance in (i for i in chosen if BY_NAME[i.stage].has_ranks):
            attempts = run.attempts(instance.id)
            live = _live(attempts[-1]) if attempts and attempts[-1].end is None else None
            if live:
                self._attempt, self.instance, self.step = attempts[-1], instance.id, live["step"]
                self._artifact = store.artifact(instance.stage, instance.key)
                return
        raise RequestError(
            f"{run.name}: no training has made a step yet, or all are done; a drill needs one "
            "under way"
        )

    def strike(self, rank: int) -> None:
        """Inject the fault.

        Raises RequestError for a rank that does not exist, or a checkpoint that is not there yet.
        """
        num_ranks = len(self._attempt.storage.children("beats"))
        if not 0 <= rank < num_ranks:
            raise RequestError(f"--rank {rank}: this training has ranks 0..{num_ranks - 1}")
        order = self._order(rank)
        self.struck_at = time.time()
        try:
            self._attempt.storage.create_json(FAULT_ORDER, order)
        except AlreadyExistsError:
            raise RequestError(
                f"{self.run.name}: another drill strikes this attempt already"
            ) from None
        if self._fault == "byte":  # once nobody writes any more, and before the next attempt reads
            self._await_end()
            self._flip_a_byte()
        if self._fault == "head":
            self._executor.kill_head(self.run)
            return
        supervisor = self.run.live_supervisor()
        if supervisor and _machine(supervisor.started) == order.get("node"):
            supervisor.storage.create_json(FAULT_ORDER, order)

    def _order(self, rank: int) -> dict[str, Any]:
        """What tells the victim that it is one."""
        order: dict[str, Any] = {"kind": self._fault}
        if self._fault in ("driver", "head"):
            return order
        is_of_ray = self.run.cluster().nodes_come_and_go
        if self._fault == "spot" or (self._fault == "node" and not is_of_ray):
            beat = self._attempt.storage.read_json(f"beats/rank-{rank:05d}.json")
            return {**order, (DRAINED if self._fault == "spot" else "node"): _machine(beat)}
        return {**order, "rank": rank}  # whose node it is, the rank knows

    def await_recovery(
        self, timeout_s: float, on_resume: Callable[[], None] = lambda: None
    ) -> Outcome:
        """Wait for the first new step, resuming the run where nothing else will.

        ``on_resume`` is called when that was needed.

        Raises RunFailedError when it does not come in time, or the run gives up.
        """
        run, struck = self.run, self._attempt
        look_at = time.monotonic()
        deadline = look_at + timeout_s
        while time.monotonic() < deadline:
            time.sleep(_POLL_S)
            following = [a for a in run.attempts(self.instance) if a.number > struck.number]
            if following and (live := _live(following[-1])):
                return self._outcome(following[-1], live)
            if self._artifact.is_complete():
                raise RequestError(f"{run.name}: the training ended before the fault could act")
            end = (following or (struck,))[-1].end
            if end and end.get("action") == "stop":
                raise RunFailedError(f"{run.name}: gave up after the fault: {end['reason']}")
            if time.monotonic() >= look_at:
                observed = observe(run)
                look_at = time.monotonic() + observed.look_every_s
                is_ours_to_resume = self._fault != "head" and not observed.is_alive
                if is_ours_to_resume and time.time() - self.struck_at > 2 * _POLL_S:
                    start(run, self._store)
                    on_resume()
        remedy = f"see `orchestrator status {run.name}`"
        if self._fault == "head":
            remedy = (
                "is `orchestrator resume --interrupted` the last line of its start-up commands?"
            )
        raise RunFailedError(f"{run.name}: no new step within {timeout_s:.0f} s; {remedy}")

    def _await_end(self) -> None:
        deadline = time.monotonic() + _END_TIMEOUT_S
        while self._attempt.end is None:
            if time.monotonic() > deadline:
                raise RunFailedError(f"{self.instance}: the rank was not killed; is it stuck?")
            time.sleep(_POLL_S / 10)

    def _flip_a_byte(self) -> None:
        """Change one byte of the smallest file of the newest checkpoint."""
        out = self._artifact.storage
        found = checkpoints.committed(out)
        if not found:
            raise RequestError(f"{out.url}: has no checkpoint yet; strike again later")
        folder, files = checkpoints.folder_of(out, found[-1]), found[-1].files
        path = min(files, key=lambda name: (files[name].size, name))
        data = bytearray(folder.read_bytes(path))
        data[secrets.randbelow(len(data))] ^= 1
        folder.replace(path, bytes(data))

    def _outcome(self, following: AttemptFolder, live: Mapping[str, Any]) -> Outcome:
        end = self._attempt.end or {}
        ended_at = end.get("ended_at", following.started["started_at"])
        phases = {name: float(seconds) for name, seconds in live["phases"].items()}
        first = next(following.steps(), None)
        new_at = first["at"] if first else time.time()
        resumed_step = checkpoints.step_of(live["resumed_from"])
        # The last steps of what was killed are not recorded: a checkpoint may be newer than they.
        recorded = (step["step"] for step in self._attempt.steps())
        last = max((self.step, resumed_step, *recorded))
        return Outcome(
            fault=self._fault,
            instance=self.instance,
            attempt=self._attempt.number,
            step=last,
            cause=end.get("cause", "node_lost"),
            resumed_from=live["resumed_from"],
            refused=tuple(live["refused"]),
            steps_lost=last - resumed_step,
            noticed_s=ended_at - self.struck_at,
            restarted_s=new_at - ended_at - sum(phases.values()),
            phases_s=phases,
            recovered_s=new_at - self.struck_at,
        )


def _live(attempt: AttemptFolder) -> dict[str, Any] | None:
    """What an attempt tells of itself while it runs; None before its first step."""
    try:
        live: dict[str, Any] | None = attempt.storage.find_json("live.json")
    except OrchestratorError:
        return None
    return live if live and "first_step" in live["phases"] else None


def _machine(record: Mapping[str, Any]) -> str:
    """The machine's name in what a process says of itself."""
    return str(record["process"]["host"].split("/")[0])
