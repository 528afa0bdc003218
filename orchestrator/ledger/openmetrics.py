"""A run's status as OpenMetrics text, for Prometheus and whatever else reads that format.

In: a run's status. Out: gauges, all labeled with the run. They are read
anew from the ledger each time, so nothing has to live between two scrapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from orchestrator.ledger.goodput import PART_NAMES
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import Observed, RunState, RunStatus, StageStatus, run_status
from orchestrator.ledger.store import Store
from orchestrator.plan.stages import BY_NAME

FILE = "metrics.openmetrics"
"""In a run's folder: its newest figures."""
_Samples = Iterable[tuple[tuple[str, ...], float | None]]
"""Label values after the run's name, and the value; None when it is not known."""


def openmetrics(status: RunStatus) -> str:
    """The OpenMetrics text of a run, end marker included."""
    registry = CollectorRegistry()
    registry.register(_Snapshot(status))
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]  # theirs is untyped
    return text.decode()


def write_openmetrics(run: RunFolder, store: Store, observed: Observed) -> str:
    """Write the run's figures for monitoring into its folder; returns where they are."""
    text = openmetrics(run_status(run, store, observed))
    run.storage.replace(FILE, text.encode())
    return f"{run.storage.url}/{FILE}"


class _Snapshot(Collector):
    """A run's figures as they were when its status was read."""

    def __init__(self, status: RunStatus) -> None:
        self._status = status

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Every family, those without samples too."""
        return [*self._of_run(), *self._of_stages(), *self._of_training()]

    def _of_run(self) -> Iterable[GaugeMetricFamily]:
        parts = self._status.goodput
        yield self._gauge(
            "run_seconds",
            "Wall-clock time of the run by what it went to; the parts add up to all of it.",
            (((part,), parts[f"{part}_s"]) for part in PART_NAMES),
            labels=("part",),
            unit="seconds",
        )
        yield self._gauge(
            "run_ettr",
            "Effective training time ratio: productive time over elapsed time without the queue.",
            [((), parts["ettr"])],
        )
        yield self._gauge(
            "run_state",
            "1 for the state the run is in, 0 for all others.",
            (((state,), float(state is self._status.state)) for state in RunState),
            labels=("state",),
        )

    def _of_stages(self) -> Iterable[GaugeMetricFamily]:
        yield self._gauge(
            "stage_attempts",
            "Attempts of a stage instance by why they ended, or their state when nothing went "
            "wrong; instances that share a pass share its attempts.",
            (
                ((stage.instance.stage, stage.instance.id, cause), float(count))
                for stage in self._status.stages
                for cause, count in _causes(stage).items()
            ),
            labels=("stage", "instance", "cause"),
        )

    def _of_training(self) -> Iterable[GaugeMetricFamily]:
        stages = self._status.stages
        trainings = [s for s in stages if BY_NAME[s.instance.stage].has_ranks]
        for name, documentation, value_of in _TRAINING:
            yield self._gauge(
                f"train_{name}",
                documentation,
                [((stage.instance.id,), value_of(stage)) for stage in trainings],
                labels=("instance",),
            )

    def _gauge(
        self,
        name: str,
        documentation: str,
        samples: _Samples,
        *,
        labels: tuple[str, ...] = (),
        unit: str = "",
    ) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            f"orchestrator_{name}", documentation, labels=("run", *labels), unit=unit
        )
        for values, value in samples:
            if value is not None:
                family.add_metric((self._status.run, *values), value)
        return family


def _causes(stage: StageStatus) -> Counter[str]:
    return Counter(a.cause or a.state for a in stage.attempts)


def _rate(stage: StageStatus, name: str) -> float | None:
    """The newest rate of the attempt at work."""
    value = stage.progress.get("rates", {}).get(name)
    return None if value is None else float(value)


_TRAINING = (
    ("step", "Optimizer steps done.", lambda stage: stage.step),
    ("steps", "Optimizer steps asked for.", lambda stage: stage.instance.steps),
    ("tokens_per_s", "Tokens a second.", lambda stage: _rate(stage, "tokens_per_s")),
    ("loss", "Training loss, nats a token.", lambda stage: _rate(stage, "loss")),
)
