"""What a run is doing, read from its folder and the store alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.ledger.goodput import goodput
from orchestrator.ledger.openmetrics import openmetrics
from orchestrator.ledger.run import DRIVER_LOG, AttemptFolder, RunFolder
from orchestrator.ledger.store import Store
from orchestrator.plan.planner import Found, Instance

FINAL = ("succeeded", "failed", "cancelled")
OPENMETRICS = "metrics.openmetrics"


def run_status(run: RunFolder, store: Store) -> dict[str, Any]:
    """The document of ``status RUN --json``."""
    return {**run_progress(run, store), "goodput": run_goodput(run)}


def run_progress(run: RunFolder, store: Store) -> dict[str, Any]:
    """The document without its goodput, which reads every step line: for asking each second."""
    plan, cluster = run.plan(), run.cluster()
    alive = run.live_supervisor() is not None
    found = store.find({i.id: f"{i.stage}/{i.key}" for i in plan.instances})
    stages = [
        _stage(i, found[i.id], run.attempts(i.leader), alive, _shards_total(i, found))
        for i in plan.instances
    ]
    return {
        "run": run.name,
        "state": _run_state(run, alive, stages),
        "backend": cluster.backend,
        "stages": stages,
    }


def run_goodput(run: RunFolder) -> dict[str, float | None]:
    """Where the run's wall-clock time went, from its first supervisor's start on."""
    return goodput(
        {i.id: run.attempts(i.id) for i in run.plan().instances if i.leader == i.id},
        submitted_at=next((s.started["started_at"] for s in run.supervisors()), None),
        is_alive=run.live_supervisor() is not None,
    )


def _checkpoint_interval(attempts: Sequence[AttemptFolder]) -> dict[str, float] | None:
    """The newest choice of the time between checkpoints, with what it was chosen from."""
    events = [e for a in attempts[-1:] for e in a.events() if e["kind"] == "checkpoint_interval"]
    return {k: v for k, v in events[-1].items() if k not in ("at", "kind")} if events else None


def write_openmetrics(run: RunFolder, store: Store) -> str:
    """Write the run's figures for monitoring into its folder; returns where they are."""
    text = openmetrics(run.name, run_status(run, store))
    run.storage.replace(OPENMETRICS, text.encode())
    return f"{run.storage.url}/{OPENMETRICS}"


def _stage(
    instance: Instance,
    found: Found,
    attempts: Sequence[AttemptFolder],
    alive: bool,
    shards_total: int | None,
) -> dict[str, Any]:
    rows = [_attempt(a, alive) for a in attempts]
    progress = attempts[-1].progress if attempts and not found.complete else {}
    return {
        "id": instance.id,
        "name": instance.stage,
        "variant": ", ".join(instance.variants),
        "key": instance.key,
        "state": _stage_state(found, rows, alive),
        "reused": found.complete and not rows,
        "shards_done": (shards_total if found.complete else found.shards_done)
        if shards_total
        else None,
        "shards_total": shards_total,
        "step": _step(instance, found, progress),
        "steps": instance.steps,
        "checkpoint_interval": _checkpoint_interval(attempts) if instance.steps else None,
        "progress": progress,
        "attempts": rows,
    }


def _step(instance: Instance, found: Found, progress: Mapping[str, Any]) -> int | None:
    if instance.steps is None:
        return None
    if found.complete:
        return instance.steps
    live = int(progress["done"]) if progress.get("unit") == "steps" else 0
    return max(live, found.step)


def _shards_total(instance: Instance, found: Mapping[str, Found]) -> int | None:
    if instance.stage != "tokenize":
        return None
    total = found[instance.needs["corpus"]].facts.get("num_shards")
    return int(total) if total is not None else None


def _stage_state(found: Found, rows: Sequence[Mapping[str, Any]], alive: bool) -> str:
    if found.complete:
        return "succeeded"
    if not rows:
        return "queued" if alive else "pending"
    last = rows[-1]
    if last["state"] in ("running", "cancelled"):
        return str(last["state"])
    return "queued" if alive and last["action"] != "stop" else "failed"


def _attempt(attempt: AttemptFolder, alive: bool) -> dict[str, Any]:
    started, end = attempt.started, attempt.end
    if end is None:  # whoever could have written the end is gone, or still at work
        end = {"state": "running" if alive else "failed", "cause": "" if alive else "node_lost"}
    return {
        "n": attempt.number,
        "state": end["state"],
        "cause": end.get("cause", ""),
        "action": end.get("action", ""),
        "reason": end.get("reason", ""),
        "started_at": started["started_at"],
        "ended_at": end.get("ended_at"),
        "node": end.get("node", ""),
        "log": f"{attempt.storage.url}/{DRIVER_LOG}",
    }


def _run_state(run: RunFolder, alive: bool, stages: Sequence[Mapping[str, Any]]) -> str:
    states = [s["state"] for s in stages]
    if alive:
        return "running" if any(s["attempts"] for s in stages) else "queued"
    if all(s == "succeeded" for s in states):
        return "succeeded"
    supervisors = run.supervisors()
    if not supervisors:
        return "pending"
    end = supervisors[-1].end
    return "cancelled" if end and end["state"] == "cancelled" else "failed"


def run_cause(run: RunFolder) -> str:
    """Why a run stopped short: ``node_lost`` when its supervisor died without a word."""
    supervisors = run.supervisors()
    if not supervisors or run.live_supervisor():
        return ""
    end = supervisors[-1].end
    return str(end.get("cause", "")) if end else "node_lost"
