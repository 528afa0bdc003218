"""A run's status as OpenMetrics text, for Prometheus and whatever else reads that format.

In: the document of ``status RUN --json``. Out: gauges, all labeled with the run. They are read
anew from the ledger each time, so nothing has to live between two scrapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from orchestrator.ledger.goodput import PART_NAMES
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import Observed, run_status
from orchestrator.ledger.store import Store

FILE = "metrics.openmetrics"
"""In a run's folder: its newest figures."""
RUN_STATES = ("pending", "queued", "running", "succeeded", "failed", "cancelled")

_Status = Mapping[str, Any]
_Samples = Iterable[tuple[tuple[str, ...], float | None]]
"""Label values after the run's name, and the value; None when it is not known."""


def openmetrics(run_name: str, status_document: Mapping[str, Any]) -> str:
    """The OpenMetrics text of a run, end marker included."""
    registry = CollectorRegistry()
    registry.register(_Snapshot(run_name, status_document))
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]  # theirs is untyped
    return text.decode()


def write_openmetrics(run: RunFolder, store: Store, observed: Observed) -> str:
    """Write the run's figures for monitoring into its folder; returns where they are."""
    text = openmetrics(run.name, run_status(run, store, observed))
    run.storage.replace(FILE, text.encode())
    return f"{run.storage.url}/{FILE}"


class _Snapshot(Collector):
    """A run's figures as they were when its status was read."""

    def __init__(self, run_name: str, status: _Status) -> None:
        self._run_name, self._status = run_name, status

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Every family, those without samples too."""
        return [*self._of_run(), *self._of_stages(), *self._of_training()]

    def _of_run(self) -> Iterable[GaugeMetricFamily]:
        parts, state = self._status["goodput"], self._status["state"]
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
            (((name,), float(name == state)) for name in RUN_STATES),
            labels=("state",),
        )

    def _of_stages(self) -> Iterable[GaugeMetricFamily]:
        yield self._gauge(
            "stage_attempts",
            "Attempts of a stage instance by why they ended, or their state when nothing went "
            "wrong; instances that share a pass share its attempts.",
            (
                ((stage["name"], stage["id"], cause), float(count))
                for stage in self._status["stages"]
                for cause, count in _causes(stage).items()
            ),
            labels=("stage", "instance", "cause"),
        )

    def _of_training(self) -> Iterable[GaugeMetricFamily]:
        trainings = [stage for stage in self._status["stages"] if stage["steps"] is not None]
        for name, documentation, value_of in _TRAINING:
            yield self._gauge(
                f"train_{name}",
                documentation,
                [((stage["id"],), value_of(stage)) for stage in trainings],
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
                family.add_metric((self._run_name, *values), value)
        return family


def _causes(stage: _Status) -> Counter[str]:
    return Counter(a["cause"] or a["state"] for a in stage["attempts"])


def _rate(stage: _Status, name: str) -> float | None:
    """A rate of the attempt at work, as it last reported it."""
    value = stage["progress"].get("rates", {}).get(name)
    return None if value is None else float(value)


_TRAINING = (
    ("step", "Optimizer steps done.", lambda stage: stage["step"]),
    ("steps", "Optimizer steps asked for.", lambda stage: stage["steps"]),
    ("tokens_per_s", "Tokens a second.", lambda stage: _rate(stage, "tokens_per_s")),
    ("loss", "Training loss, nats a token.", lambda stage: _rate(stage, "loss")),
)
