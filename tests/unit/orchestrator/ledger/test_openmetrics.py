"""The OpenMetrics text: the reference parser reads it, and finds what the status says."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from orchestrator.ledger.attempt import AttemptFolder
from orchestrator.ledger.goodput import PART_NAMES
from orchestrator.ledger.openmetrics import openmetrics
from orchestrator.ledger.status import AttemptStatus, RunState, RunStatus, StageStatus
from orchestrator.ledger.storage import Storage
from orchestrator.plan.planner import Found, Instance

HOSTILE = 'a "run"\\with\nall of it'


def attempt(n: int, state: str, cause: str) -> AttemptStatus:
    return AttemptStatus(
        n=n,
        state=state,
        cause=cause,
        action="",
        reason="",
        message="",
        started_at=0.0,
        ended_at=None,
        node="",
        log="",
        folder=AttemptFolder(n, Storage("memory://attempt")),
    )


def stage(instance_id: str, *ends: tuple[str, str], **more: Any) -> StageStatus:
    name, steps = instance_id.partition("-")[0], more.pop("steps", None)
    instance = Instance(
        id=instance_id,
        stage=name,
        node=name,
        key="",
        inputs={},
        needs={},
        variants=(),
        leader=instance_id,
        steps=steps,
    )
    nothing: dict[str, Any] = {"shards_done": None, "shards_total": None, "step": None}
    return StageStatus(
        instance=instance,
        state=RunState.RUNNING,
        found=Found(complete=False),
        job="",
        waits="",
        checkpoint_interval=None,
        attempts=tuple(attempt(n, *end) for n, end in enumerate(ends, 1)),
        **{**nothing, "progress": {}, **more},
    )


def status(run: str = "small", **more: Any) -> RunStatus:
    parts = {f"{part}_s": float(n) for n, part in enumerate(PART_NAMES)}
    stages = (
        stage("pack-1", ("succeeded", "")),
        stage(
            "train-1",
            *(("preempted", "preempted"), ("failed", "node_lost"), ("preempted", "preempted")),
            ("running", ""),
            step=7,
            steps=12,
            progress={"rates": {"loss": 2.5, "tokens_per_s": 640.0}},
        ),
        stage("train-2", step=0, steps=12),
    )
    base: dict[str, Any] = {
        "state": RunState.RUNNING,
        "goodput": {"elapsed_s": 21.0, "ettr": 0.25, **parts},
        "stages": stages,
    }
    return RunStatus(run=run, cause="", backend="fake", problem="", **{**base, **more})


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Name and label values in the order of their labels' names, and the value."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_it_says_what_the_status_says() -> None:
    run, prefix = "small", "orchestrator"
    assert samples(openmetrics(status())) == {
        **{(f"{prefix}_run_seconds", p, run): float(n) for n, p in enumerate(PART_NAMES)},
        (f"{prefix}_run_ettr", run): 0.25,
        **{(f"{prefix}_run_state", run, s): float(s == "running") for s in RunState},
        # cause, instance, run, stage
        (f"{prefix}_stage_attempts", "succeeded", "pack-1", run, "pack"): 1,
        (f"{prefix}_stage_attempts", "preempted", "train-1", run, "train"): 2,
        (f"{prefix}_stage_attempts", "node_lost", "train-1", run, "train"): 1,
        (f"{prefix}_stage_attempts", "running", "train-1", run, "train"): 1,
        (f"{prefix}_train_step", "train-1", run): 7,
        (f"{prefix}_train_step", "train-2", run): 0,
        (f"{prefix}_train_steps", "train-1", run): 12,
        (f"{prefix}_train_steps", "train-2", run): 12,
        (f"{prefix}_train_tokens_per_s", "train-1", run): 640,
        (f"{prefix}_train_loss", "train-1", run): 2.5,
    }


def test_every_family_is_a_gauge_with_a_sentence() -> None:
    families = list(text_string_to_metric_families(openmetrics(status())))
    assert {family.type for family in families} == {"gauge"}
    assert all(family.documentation.endswith(".") for family in families)
    assert {family.name: family.unit for family in families if family.unit} == {
        "orchestrator_run_seconds": "seconds"
    }


def test_what_is_not_known_has_no_sample() -> None:
    nothing = {"elapsed_s": 0.0, "ettr": None, **{f"{part}_s": 0.0 for part in PART_NAMES}}
    names = {name for name, *_ in samples(openmetrics(status(goodput=nothing, stages=())))}
    assert names == {"orchestrator_run_seconds", "orchestrator_run_state"}


@pytest.mark.parametrize("name", [HOSTILE, "twist-7b-0a1b2c3d"])
def test_any_name_survives(name: str) -> None:
    found = {
        sample.labels["run"]
        for family in text_string_to_metric_families(openmetrics(status(name)))
        for sample in family.samples
    }
    assert found == {name}
