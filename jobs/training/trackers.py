"""Where curves go besides the ledger: TensorBoard, Weights & Biases and MLflow, by their libraries.

Rows come in the order of their steps, and again from the first one whenever a process takes over
from another: what a tracker has already is its own to know, so that a training is one run with one
curve however often it was interrupted.
"""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from orchestrator.ledger.storage import Storage
from orchestrator.plan.keys import flatten
from orchestrator.spec.loader import resolve_env
from orchestrator.spec.model import Spec
from orchestrator.spec.recipe import Tracking

Kind = Literal["tensorboard", "wandb", "mlflow"]
Values = Mapping[str, float]

POSITION = "position.json"
"""In the folder of TensorBoard's events: the last step that is in them."""
RUN_TAG = "orchestrator.training"
"""MLflow gives runs ids of its own; ours is this tag."""
_METRICS_AT_ONCE, _PARAMS_AT_ONCE = 1000, 100
"""MLflow takes no more in one request."""
_LONGEST_PARAM = 6000
_VARIABLES = {
    "wandb.api_key": "WANDB_API_KEY",
    "wandb.base_url": "WANDB_BASE_URL",
    "mlflow.username": "MLFLOW_TRACKING_USERNAME",
    "mlflow.password": "MLFLOW_TRACKING_PASSWORD",
    "mlflow.token": "MLFLOW_TRACKING_TOKEN",
}
"""What the libraries read of their own accord."""


class Row(NamedTuple):
    """What is known of one step."""

    step: int
    at: float
    """When it ended, in seconds since the epoch."""
    values: Values


class Tracked(Spec):
    """One training, as a tracker shows it."""

    id: str
    """The same for all attempts at it, wherever they run."""
    name: str
    """What people call it: run and stage instance."""
    tracking: Tracking
    """The recipe's section; what it refers to is looked up in this process's environment."""
    params: dict[str, Any]
    """The resolved recipe."""
    folder: str
    """Local folder for what the tracker writes itself."""


class Tracker(ABC):
    """A training in one tracker."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def send(self, rows: Sequence[Row]) -> None:
        """Show rows, but for what is shown already."""

    @abstractmethod
    def score(self, step: int, values: Values) -> None:
        """Show what the model of a step is worth."""

    @abstractmethod
    def close(self) -> None:
        """Let everything arrive."""


class TensorBoard(Tracker):
    """Event files, continued where those there end; TensorBoard hides what is repeated."""

    def __init__(self, tracked: Tracked) -> None:
        # tensorboardX rather than torch's writer: it imports no TensorFlow and starts in 0.2 s.
        from tensorboardX import SummaryWriter

        self._folder = Storage(tracked.folder)
        self._sent = int((self._folder.find_json(POSITION) or {"step": 0})["step"])
        self._writer = SummaryWriter(logdir=tracked.folder, purge_step=self._sent + 1)

    def send(self, rows: Sequence[Row]) -> None:
        """Append events, then note their last step: never the other way round."""
        new = [row for row in rows if row.step > self._sent]
        for row in new:
            for name, value in row.values.items():
                self._writer.add_scalar(name, value, row.step, walltime=row.at)
        if new:
            self._writer.flush()
            self._sent = new[-1].step
            self._folder.replace(POSITION, f'{{"step": {self._sent}}}'.encode())

    def score(self, step: int, values: Values) -> None:
        """One point each."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WeightsAndBiases(Tracker):
    """A run of an id of ours, resumed wherever it was.

    Online, the server says which step is next. Offline nobody does, so the whole curve is written
    again into a folder of its own, which then replaces those of attempts before.
    """

    def __init__(self, tracked: Tracked) -> None:
        import wandb

        options = tracked.tracking.wandb
        assert options is not None, "only a recipe that asks for it is tracked there"
        base = Path(tracked.folder)
        base.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            id=tracked.id,
            project=options.project,
            entity=options.entity,
            name=tracked.name,
            config=tracked.params,
            dir=str(base),
            mode=options.mode,
            resume="allow",
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_meta=True,  # among them the command line and the host's name
                x_disable_stats=True,
            ),
        )
        self._next = self._run.step
        self._is_offline, self._has_rows = options.mode == "offline", False

    def send(self, rows: Sequence[Row]) -> None:
        """Log rows from the next step on."""
        for row in rows:
            if row.step >= self._next:
                self._run.log(dict(row.values), step=row.step)
                self._next, self._has_rows = row.step + 1, True

    def score(self, step: int, values: Values) -> None:  # noqa: ARG002 (a summary has no step)
        """Scores stand in the run's summary."""
        self._run.summary.update(dict(values))

    def close(self) -> None:
        """Wait for the server or the disk; then this run's earlier offline folders are in it."""
        import wandb

        folder = Path(self._run.dir).parent
        self._run.finish()
        wandb.teardown()  # its service writes the last of it after `finish`; it is ended with us
        if self._is_offline and self._has_rows:
            for other in folder.parent.glob(f"offline-run-*-{self._run.id}"):
                if other != folder:
                    shutil.rmtree(other)


class MLflow(Tracker):
    """A run with a tag of ours, found again by it."""

    def __init__(self, tracked: Tracked) -> None:
        # Its store of files is asked for by name: it is what works without any server.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        options = tracked.tracking.mlflow
        assert options is not None, "only a recipe that asks for it is tracked there"
        uri = resolve_env(options.uri, where="recipe: tracking.mlflow.uri", is_place=False)
        self._client = MlflowClient(tracking_uri=uri)
        self._run_id = self._found(options.experiment, tracked)
        self._sent: dict[str, int] = {}

    def _found(self, name: str, tracked: Tracked) -> str:
        experiment = self._client.get_experiment_by_name(name)
        there = experiment.experiment_id if experiment else self._client.create_experiment(name)
        query = f"tags.`{RUN_TAG}` = '{tracked.id}'"
        if runs := self._client.search_runs([there], filter_string=query):
            return str(runs[0].info.run_id)
        tags = {RUN_TAG: tracked.id}
        run = self._client.create_run(there, tags=tags, run_name=tracked.name)
        self._describe(str(run.info.run_id), flatten(tracked.params))
        return str(run.info.run_id)

    def _describe(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        listed = [Param(name, str(value)[:_LONGEST_PARAM]) for name, value in params.items()]
        for start in range(0, len(listed), _PARAMS_AT_ONCE):
            self._client.log_batch(run_id, params=listed[start : start + _PARAMS_AT_ONCE])

    def send(self, rows: Sequence[Row]) -> None:
        """Log each value that is not in its curve yet."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(1000 * row.at), row.step)
            for row in rows
            for name, value in row.values.items()
            if row.step > self._last(name)
        ]
        for start in range(0, len(metrics), _METRICS_AT_ONCE):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + _METRICS_AT_ONCE])
        self._sent |= {metric.key: metric.step for metric in metrics}

    def _last(self, name: str) -> int:
        if name not in self._sent:
            history = self._client.get_metric_history(self._run_id, name)
            self._sent[name] = max((point.step for point in history), default=0)
        return self._sent[name]

    def score(self, step: int, values: Values) -> None:
        """One point each."""
        for name, value in values.items():
            self._client.log_metric(self._run_id, name, value, step=step)

    def close(self) -> None:
        """Each request has arrived."""


def export_references(tracking: Tracking) -> None:
    """Put what a recipe refers to where the libraries look for it: this process's environment.

    Raises RequestError when a variable is not set.
    """
    for place, reference in tracking.references.items():
        if variable := _VARIABLES.get(place):
            where = f"recipe: tracking.{place}"
            os.environ[variable] = resolve_env(reference, where=where, is_place=False)


TRACKERS: Mapping[Kind, Callable[[Tracked], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}
