from __future__ import annotations

import pytest

from jobs.training.interval import FIRST_AFTER_S, CheckpointInterval
from orchestrator.spec.recipe import Checkpoint


def test_by_steps() -> None:
    interval = CheckpointInterval(Checkpoint(every_steps=8), mtbf_s=3600.0)
    due = []
    for step in range(1, 25):
        if interval.is_due(step) and step != 16:  # put off once, as in a row of bad batches
            due.append(step)
            interval.saved(step, stall_s=0.1, publish_s=0.1)
    assert due == [8, 17, 24]
    assert interval.interval_s is None


def test_by_minutes() -> None:
    interval = CheckpointInterval(Checkpoint(every_min=1e-9), mtbf_s=3600.0)
    assert interval.is_due(1)
    assert not CheckpointInterval(Checkpoint(every_min=60.0), mtbf_s=3600.0).is_due(10_000)


def test_auto_learns_from_what_checkpoints_cost() -> None:
    interval = CheckpointInterval(Checkpoint(every_steps="auto"), mtbf_s=3600.0)
    assert interval.interval_s == FIRST_AFTER_S
    for stall_s in (2.0, 2.0, 50.0):  # one was slow for another reason
        interval.saved(7, stall_s=stall_s, publish_s=5.0)
    assert interval.interval_s == 120.0
    assert not interval.is_due(7)
    assert interval.facts() == {
        "mtbf_s": 3600.0, "publish_s": 5.0, "stall_s": 2.0, "interval_s": 120.0
    }  # fmt: skip


def test_auto_is_never_faster_than_the_store() -> None:
    interval = CheckpointInterval(Checkpoint(every_steps="auto"), mtbf_s=3600.0)
    interval.saved(7, stall_s=2.0, publish_s=500.0)
    assert interval.interval_s == pytest.approx(500.0)
