"""What the people of a run are told of it: derived from its status, and kept in its folder.

runs/<run>/notices/
    origin.json             since when, and a token that no other run's notices carry
    <name>/notice.json      what is told; created exclusively before anybody is
    <name>/webhook.json     what came of it, for each hook; created when that is known
    lease/…                 who tells: one process at a time

A name says what happened to whom (``back-train-0123456789ab-0003``), so that whoever looks next
finds the same notice, and tells it only if nobody knows what came of it.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from orchestrator.errors import AlreadyExistsError, Cause, CorruptError
from orchestrator.ledger.records import record_at, understood
from orchestrator.ledger.status import AttemptStatus, RunState, RunStatus, StageStatus
from orchestrator.ledger.storage import Storage
from orchestrator.plan.policy import remedy_of
from orchestrator.spec.cluster import Event

_NOTICE, _ORIGIN = "notice.json", "origin.json"
_REMEDY = "remove it"
_NO_ACCIDENT = (RunState.SUCCEEDED, RunState.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One thing that happened to a run."""

    name: str
    """What happened to whom; the same whoever derives it."""
    event: Event
    at: float
    """When it happened, in seconds since the epoch."""
    text: str
    """All of it in one line."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Of these, those that are known: stage, node, attempt, step, steps, cause, reason, message,
    remedy, scores, report."""

    def payload(self, run: str, token: str) -> dict[str, Any]:
        """What a hook is given."""
        return {
            "id": f"{run}/{token}/{self.name}",
            "run": run,
            "event": self.event,
            "time": datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds"),
            "text": f"{run}: {self.text}",
            **{name: fact for name, fact in self.facts.items() if fact not in (None, "", {})},
        }


def notices_of(status: RunStatus, since: float) -> Iterator[Notice]:
    """Everything that has happened to a run since a time, in seconds since the epoch."""
    begun = [a.started_at for s in status.stages for a in s.attempts]
    if begun and min(begun) >= since:
        yield Notice(
            name="started", event="started", at=min(begun), text=f"started on {status.backend}"
        )
    for stage in status.stages:
        if stage.instance.leader == stage.instance.id:
            yield from _of_stage(stage, status, since)
    if status.state is RunState.SUCCEEDED:
        lasted_s = time.time() - min(begun, default=time.time())
        facts = {"elapsed_s": round(lasted_s, 1)}
        yield Notice(name="done", event="done", at=time.time(), text="done", facts=facts)
    elif status.state is RunState.FAILED and not any(s.failure or s.job for s in status.stages):
        yield _failed_without_a_stage(status, len(begun))


def _of_stage(stage: StageStatus, status: RunStatus, since: float) -> Iterator[Notice]:
    # Those that waited for another run are nobody's concern, what a user cancelled is theirs.
    attempts = [a for a in stage.attempts if a.action != "wait"]
    is_final = status.state.is_final
    if stage.instance.steps and stage.step and attempts and attempts[0].started_at >= since:
        yield _first_step(stage, attempts)
    for before, attempt in zip([None, *attempts], attempts, strict=False):
        if before and before.state not in _NO_ACCIDENT and attempt.started_at >= since:
            yield _back(stage, attempt)
        is_new = attempt.ended_at is not None and attempt.ended_at >= since
        if attempt is stage.failure:
            if is_new or is_final:
                yield _failed(stage, attempt)
        elif is_new and attempt.state not in (*_NO_ACCIDENT, RunState.RUNNING):
            yield _interrupted(stage, attempt)
    if is_final and stage.state is RunState.FAILED and not stage.attempts and stage.job:
        yield _never_begun(stage)


def _first_step(stage: StageStatus, attempts: Sequence[AttemptStatus]) -> Notice:
    facts = {**_about(stage), "step": stage.step, "steps": stage.instance.steps}
    name = f"first_step-{stage.instance.id}"
    text = f"{stage.instance.id}: has done its first step of {stage.instance.steps:,}"
    at = _stepped_by(attempts)
    return Notice(name=name, event="first_step", at=at, text=text, facts=facts)


def _stepped_by(attempts: Sequence[AttemptStatus]) -> float:
    """When the first attempt that has done steps had done some: not after its end."""
    for attempt in attempts:
        with suppress(CorruptError):
            progress = attempt.folder.progress
            if progress.get("done"):
                with understood(attempt.folder.storage.url, _REMEDY):
                    return min(float(progress["at"]), attempt.ended_at or math.inf)
    return time.time()


def _back(stage: StageStatus, attempt: AttemptStatus) -> Notice:
    where = f" on {attempt.node}" if attempt.node else ""
    return Notice(
        name=f"back-{stage.instance.id}-{attempt.n:04d}",
        event="back",
        at=attempt.started_at,
        text=f"{stage.instance.id}: back at work{where} (attempt {attempt.n})",
        facts=_about(stage, attempt),
    )


def _interrupted(stage: StageStatus, attempt: AttemptStatus) -> Notice:
    said = attempt.message or attempt.reason
    is_over = attempt.action == "stop"
    return Notice(
        name=f"{'failed' if is_over else 'interrupted'}-{stage.instance.id}-{attempt.n:04d}",
        event="failed" if is_over else "interrupted",
        at=attempt.ended_at or time.time(),
        text=f"{stage.instance.id}: {attempt.cause or attempt.state}: {said}",
        facts={**_about(stage, attempt), **_why(attempt)},
    )


def _failed(stage: StageStatus, attempt: AttemptStatus) -> Notice:
    facts = {**_about(stage, attempt), **_why(attempt)}
    said = attempt.message or f"{attempt.reason}; {facts['remedy']}".removeprefix("; ")
    return Notice(
        name=f"failed-{stage.instance.id}-{attempt.n:04d}",
        event="failed",
        at=attempt.ended_at or time.time(),
        text=f"{stage.instance.id}: failed: {attempt.cause}: {said}",
        facts=facts,
    )


def _never_begun(stage: StageStatus) -> Notice:
    return Notice(
        name=f"failed-{stage.instance.id}-0000",
        event="failed",
        at=time.time(),
        text=f"{stage.instance.id}: failed: the scheduler says: {stage.job}",
        facts={**_about(stage), "reason": stage.job},
    )


def _failed_without_a_stage(status: RunStatus, num_attempts: int) -> Notice:
    remedy = remedy_of(Cause(status.cause)) if status.cause else ""
    return Notice(
        name=f"failed-run-{num_attempts:04d}",
        event="failed",
        at=time.time(),
        text=f"failed: {status.cause or 'nobody works on it'}: {remedy}".removesuffix(": "),
        facts={"cause": status.cause, "remedy": remedy},
    )


def _about(stage: StageStatus, attempt: AttemptStatus | None = None) -> dict[str, Any]:
    about = {"stage": stage.instance.id, "step": stage.step, "steps": stage.instance.steps}
    return about if attempt is None else {**about, "node": attempt.node, "attempt": attempt.n}


def _why(attempt: AttemptStatus) -> dict[str, Any]:
    remedy = remedy_of(Cause(attempt.cause)) if attempt.cause else ""
    return {
        "cause": attempt.cause,
        "reason": attempt.reason,
        "message": attempt.message,
        "remedy": remedy,
    }


class NoticeFolder:
    """The notices in a run's folder."""

    def __init__(self, run: Storage) -> None:
        self.storage = run.at("notices")

    def origin(self, now: float) -> tuple[float, str]:
        """Since when this run tells, in seconds since the epoch, and its token."""
        with suppress(AlreadyExistsError):
            self.storage.create_json(_ORIGIN, {"at": now, "token": secrets.token_hex(4)})
        origin = record_at(self.storage, _ORIGIN, _REMEDY)
        return float(origin["at"]), str(origin["token"])

    def record(self, name: str, payload: Mapping[str, Any]) -> None:
        """Keep what will be told, unless it is there."""
        with suppress(AlreadyExistsError):
            self.storage.create_json(f"{name}/{_NOTICE}", dict(payload))

    def names(self) -> tuple[str, ...]:
        """All that were recorded."""
        names = self.storage.children()
        return tuple(n for n in names if self.storage.exists(f"{n}/{_NOTICE}"))

    def read(self, name: str) -> dict[str, Any]:
        """What is told. Raises CorruptError."""
        return record_at(self.storage, f"{name}/{_NOTICE}", _REMEDY)

    def untold(self, name: str, hooks: Collection[str]) -> Sequence[str]:
        """The hooks of which nobody knows what came of it."""
        known = {path.removesuffix(".json") for path in self.storage.children(name)}
        return [hook for hook in hooks if hook not in known]

    def close(self, name: str, hook: str, **outcome: Any) -> None:
        """Keep what came of it; the first word stands."""
        with suppress(AlreadyExistsError):
            self.storage.create_json(f"{name}/{hook}.json", {"at": time.time(), **outcome})
