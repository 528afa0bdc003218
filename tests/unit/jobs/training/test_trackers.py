"""One training is one run with one curve in each tracker, read back by its own library."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs.training.trackers import (
    POSITION,
    RUN_TAG,
    TRACKERS,
    Kind,
    Row,
    Tracked,
    Tracker,
    export_references,
)
from orchestrator.errors import RequestError
from orchestrator.spec.recipe import Tracking
from tests import offline_wandb

TRACKING = Tracking.model_validate(
    {
        "wandb": {"project": "speech", "mode": "offline"},
        "mlflow": {"uri": "${env:SOME_MLFLOW}", "experiment": "speech"},
    }
)


@pytest.fixture
def open_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Kind], Tracker]:
    """A tracker of one training, as each of its attempts opens it."""
    monkeypatch.setenv("SOME_MLFLOW", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    params = {"name": "tiny", "train": {"steps": 8}}
    folder = str(tmp_path / "curves")
    tracked = Tracked(id="abc", name="run/train", tracking=TRACKING, params=params, folder=folder)
    return lambda kind: TRACKERS[kind](tracked)


def rows(first: int, last: int) -> list[Row]:
    return [Row(n, 1e9 + n, {"train/loss": 1 / n, "train/lr": 0.5}) for n in range(first, last + 1)]


def of_tensorboard(folder: Path, name: str = "train/loss") -> list[tuple[int, float]]:
    curves = EventAccumulator(str(folder / "curves"), size_guidance={"scalars": 0})
    curves.Reload()
    return [(point.step, point.value) for point in curves.Scalars(name)]


def of_wandb(folder: Path, name: str = "train/loss") -> list[tuple[int, float]]:
    (run,) = offline_wandb.folders(folder / "curves")
    assert offline_wandb.run_id(run) == "abc"
    return [(row["_step"], row[name]) for row in offline_wandb.history(run)]


def of_mlflow(folder: Path, name: str = "train/loss") -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(folder / "mlflow").as_uri())
    (experiment,) = [e for e in client.search_experiments() if e.name == "speech"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags[RUN_TAG] == "abc"
    assert run.data.params == {"name": "tiny", "train.steps": "8"}
    return [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, name)]


READ: dict[Kind, Callable[..., list[tuple[int, float]]]] = {
    "tensorboard": of_tensorboard,
    "wandb": of_wandb,
    "mlflow": of_mlflow,
}


def next_second() -> None:
    """TensorBoard's and W&B's files are named by the second in which they begin."""
    second = int(time.time())
    while int(time.time()) == second:
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "mlflow"])
def test_three_attempts_are_one_curve(
    tmp_path: Path, open_tracker: Callable[[Kind], Tracker], kind: Kind
) -> None:
    """Each sends all that is committed, as one does that knows nothing of those before."""
    for last in (3, 5, 8):
        with open_tracker(kind) as tracker:
            tracker.send(rows(1, last - 1))
            tracker.send(rows(last, last))
        next_second()
    curve = READ[kind](tmp_path)
    assert [step for step, _ in curve] == list(range(1, 9))
    assert [value for _, value in curve] == pytest.approx([1 / n for n in range(1, 9)], rel=1e-6)
    assert [step for step, _ in READ[kind](tmp_path, "train/lr")] == list(range(1, 9))


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_scores_stand_at_the_last_step(
    tmp_path: Path, open_tracker: Callable[[Kind], Tracker], kind: Kind
) -> None:
    with open_tracker(kind) as tracker:
        tracker.score(8, {"scores/perplexity": 7.5})
    assert READ[kind](tmp_path, "scores/perplexity") == [(8, 7.5)]


def test_scores_stand_in_the_summary(
    tmp_path: Path, open_tracker: Callable[[Kind], Tracker]
) -> None:
    with open_tracker("wandb") as tracker:
        tracker.score(8, {"scores/perplexity": 7.5})
    (run,) = offline_wandb.folders(tmp_path / "curves")
    assert offline_wandb.summary(run)["scores/perplexity"] == 7.5


def test_events_that_were_not_noted_are_shown_once(
    tmp_path: Path, open_tracker: Callable[[Kind], Tracker]
) -> None:
    """Killed between its last events and the note of their step."""
    with open_tracker("tensorboard") as tracker:
        tracker.send(rows(1, 5))
    (tmp_path / "curves" / POSITION).write_text('{"step": 2}')
    next_second()
    with open_tracker("tensorboard") as tracker:
        tracker.send(rows(1, 6))
    assert [step for step, _ in of_tensorboard(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_references_go_where_libraries_look(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("WANDB_API_KEY", "WANDB_BASE_URL", "MLFLOW_TRACKING_TOKEN")
    for name in names:
        monkeypatch.setenv(name, "of another")
    monkeypatch.setenv("OWN_KEY", "k" * 40)
    monkeypatch.setenv("OWN_URL", "http://127.0.0.1:1")
    wandb = {"project": "p", "api_key": "${env:OWN_KEY}", "base_url": "${env:OWN_URL}"}
    export_references(Tracking.model_validate({"wandb": wandb}))
    assert [os.environ[name] for name in names] == ["k" * 40, "http://127.0.0.1:1", "of another"]
    monkeypatch.delenv("OWN_KEY")
    with pytest.raises(RequestError, match=r"tracking\.wandb\.api_key: .*OWN_KEY is not set"):
        export_references(Tracking.model_validate({"wandb": wandb}))
