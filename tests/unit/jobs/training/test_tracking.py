"""TensorBoard curves of a training, continued where it is resumed."""

from __future__ import annotations

import time
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs.training.tracking import Tracker


def steps_of(folder: Path) -> list[tuple[int, float]]:
    curves = EventAccumulator(str(folder))
    curves.Reload()
    return [(point.step, point.value) for point in curves.Scalars("train/loss")]


def test_steps_that_are_done_again_are_shown_once(tmp_path: Path) -> None:
    with Tracker(str(tmp_path), after_step=0) as tracker:
        for step in (1, 2, 3):
            tracker.scalars("train", step, {"loss": 1.0})
    second = int(time.time())
    while int(time.time()) == second:  # a writer's file is named by the second it began in
        time.sleep(0.01)
    with Tracker(str(tmp_path), after_step=1) as tracker:
        for step in (2, 3, 4):
            tracker.scalars("train", step, {"loss": 2.0})
    assert steps_of(tmp_path) == [(1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0)]


def test_without_a_folder_nothing_is_written(tmp_path: Path) -> None:
    with Tracker(None, after_step=0) as tracker:
        tracker.scalars("train", 1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []
