"""A run's status as OpenMetrics text, for Prometheus and whatever else reads that format.

In: a run's status. Out: gauges, all labeled with the run. They are read
anew from the ledger each time, so nothing has to live between two scrapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.openmetrics.exposition import generate_latest

from orchestrator.ledger.goodput import PART_NAMES
from orchestrator.ledger.status import RunState, RunStatus
from orchestrator.plan.stages import BY_NAME

FILE = "metrics.openmetrics"
"""In a run's folder: its newest figures."""
_GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "run_seconds": (
        "Wall-clock time of the run by what it went to; the parts add up to all of it.",
        ("part",),
    ),
    "run_ettr": (
        "Effective training time ratio: productive time over elapsed time without the queue.",
        (),
    ),
    "run_state": ("1 for the state the run is in, 0 for all others.", ("state",)),
    "stage_attempts": (
        "Attempts of a stage instance by why they ended, or their state when nothing went "
        "wrong; instances that share a pass share its attempts.",
        ("stage", "instance", "cause"),
    ),
    "train_step": ("Optimizer steps done.", ("instance",)),
    "train_steps": ("Optimizer steps asked for.", ("instance",)),
    "train_tokens_per_s": ("Tokens a second.", ("instance",)),
    "train_loss": ("Training loss, nats a token.", ("instance",)),
}
"""Every gauge: what it says, and its labels after the run's name."""


def openmetrics(status: RunStatus) -> str:
    """The OpenMetrics text of a run, end marker included."""
    registry = CollectorRegistry()
    gauges = {
        name: Gauge(
            f"orchestrator_{name}",
            documentation,
            ("run", *labels),
            unit="seconds" if name.endswith("_seconds") else "",
            registry=registry,
        )
        for name, (documentation, labels) in _GAUGES.items()
    }
    for name, labels, value in _samples(status):
        if value is not None:
            gauges[name].labels(status.run, *labels).set(value)
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]  # theirs is untyped
    return text.decode()


def _samples(status: RunStatus) -> Iterator[tuple[str, tuple[str, ...], float | None]]:
    """A gauge's name, its label values after the run's name, and the value; None: not known."""
    for part in PART_NAMES:
        yield "run_seconds", (part,), status.goodput[f"{part}_s"]
    yield "run_ettr", (), status.goodput["ettr"]
    for state in RunState:
        yield "run_state", (state,), float(state is status.state)
    for stage in status.stages:
        instance = stage.instance
        for cause, count in Counter(a.cause or a.state for a in stage.attempts).items():
            yield "stage_attempts", (instance.stage, instance.id, cause), count
        if BY_NAME[instance.stage].has_ranks:
            yield "train_step", (instance.id,), stage.step
            yield "train_steps", (instance.id,), instance.steps
            rates = stage.progress.get("rates", {})
            for rate in ("tokens_per_s", "loss"):
                yield f"train_{rate}", (instance.id,), rates.get(rate)
