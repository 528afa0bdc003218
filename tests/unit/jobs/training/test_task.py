from __future__ import annotations

from pathlib import Path

import pytest

from jobs.training.task import build_task
from tests.unit.jobs.training.countdown import Countdown, rank_config
from tests.unit.jobs.training.ranks import Threads


def test_a_task_is_built_from_its_name(tmp_path: Path) -> None:
    (member,) = Threads(1).members
    task = build_task(rank_config(tmp_path), member)
    assert isinstance(task, Countdown)
    assert task.config.spec == {}


@pytest.mark.parametrize("name", ["no.such:Task", "tests.unit.jobs.training.countdown:Nothing"])
def test_a_task_that_is_not_there_is_an_error(tmp_path: Path, name: str) -> None:
    config = rank_config(tmp_path).model_copy(update={"task": name})
    with pytest.raises((ImportError, AttributeError)):
        build_task(config, Threads(1).members[0])
