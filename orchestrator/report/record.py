"""What the report shows of a run, as plain data: what the ledger holds now, and what is missing.

In: a run's folder, its store, how it was observed. Out: a `Record`. Only the plan must be there:
every other file is
read by itself, and one that is missing or broken becomes a line in ``gaps`` instead of an error,
because a report is wanted most when something went wrong. Only JSON is read, so that a machine
without pyarrow can write the page.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.ledger import checkpoints
from orchestrator.ledger.artifact import MANIFEST, Artifact
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import (
    AttemptStatus,
    Observed,
    Reader,
    RunStatus,
    StageStatus,
    run_status,
)
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.store import Store
from orchestrator.plan.planner import Instance, Plan
from orchestrator.spec.cluster import RETIRED
from orchestrator.spec.recipe import Recipe

Point = tuple[int, float]
"""Step and loss; NaN at a step that gave none."""


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """One attempt of a stage instance."""

    status: AttemptStatus
    progress: Mapping[str, Any]
    """How far it was at last: done, total, unit, rates."""
    events: Mapping[str, int]
    """How often each kind of event was recorded."""
    tokens_per_s: float | None
    """Median over its optimizer steps; None when it did not train."""


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One stage instance and what it has left in the store."""

    status: StageStatus
    attempts: tuple[AttemptRecord, ...]
    """Of its leader, which does the work of the whole group."""
    manifest: Mapping[str, Any]
    """Empty while the artifact is incomplete."""
    storage: Storage
    """The artifact's folder."""

    @property
    def instance(self) -> Instance:
        """What the plan says of it."""
        return self.status.instance

    @property
    def is_complete(self) -> bool:
        """Whether the artifact has a manifest."""
        return bool(self.manifest)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the stage reported about its result."""
        return _mapping(self.manifest.get("facts"))

    @property
    def is_leader(self) -> bool:
        """Whether the attempts are its own."""
        return self.instance.leader == self.instance.id


@dataclass(frozen=True, kw_only=True)
class VariantRecord:
    """One point of the sweep: what it was asked to be, and what is known of it."""

    name: str
    overrides: Mapping[str, Any]
    instances: Mapping[str, str]
    """Stage name to instance id."""
    recipe: Recipe | None
    """None when the run's recipe cannot be read."""
    training: tuple[Point, ...]
    validation: tuple[Point, ...]
    scores: Mapping[str, Any]
    """``scores.json``; empty when there is none."""
    continuations: Any
    """``continuations.json``; None when there is none."""

    @property
    def init(self) -> str:
        """``twist`` or ``cold``."""
        return (
            self.recipe.model.init
            if self.recipe
            else str(self.overrides.get("model.init", "twist"))
        )

    @property
    def arm(self) -> str:
        """``warm`` or ``cold``."""
        return "cold" if self.init == "cold" else "warm"


@dataclass(frozen=True, kw_only=True)
class Record:
    """Everything the page is made from."""

    run: RunFolder
    plan: Plan
    status: RunStatus
    recipe_yaml: str
    code: Mapping[str, Any]
    """Commit and package versions at submission."""
    stages: tuple[StageRecord, ...]
    variants: tuple[VariantRecord, ...]
    gaps: tuple[str, ...]
    """What is not there, one sentence each."""

    def stage(self, instance_id: str) -> StageRecord:
        """The stage instance of an id. Raises KeyError."""
        return next(s for s in self.stages if s.instance.id == instance_id)

    def of_stage(self, name: str) -> tuple[StageRecord, ...]:
        """All instances of a stage."""
        return tuple(s for s in self.stages if s.instance.stage == name)


def read_record(run: RunFolder, store: Store, observed: Observed) -> Record:
    """The record of a run as it is now. Raises RequestError when there is no such run."""
    reader = Reader()
    plan, status = run.plan(), run_status(run, store, observed, reader)
    stages = tuple(_stage(reader, store, s) for s in status.stages)
    by_id = {s.instance.id: s for s in stages}
    recipes = reader.ask("recipe.yaml", lambda: {v.name: v.recipe for v in run.variants()}, {})
    return Record(
        run=run,
        plan=plan,
        status=status,
        recipe_yaml=reader.ask("recipe.yaml", lambda: _text(run.storage, "recipe.yaml"), ""),
        code=_mapping(reader.ask("code.json", lambda: run.storage.read_json("code.json"), None)),
        stages=stages,
        variants=tuple(
            _variant(reader, row, recipes.get(row["name"]), by_id) for row in plan.variants
        ),
        gaps=tuple(dict.fromkeys(filter(None, (observed.problem, *reader.gaps)))),
    )


def _stage(reader: Reader, store: Store, status: StageStatus) -> StageRecord:
    instance = status.instance
    artifact = store.artifact(instance.stage, instance.key)
    manifest = _manifest(reader, artifact, instance) if status.found.complete else {}
    if not manifest:
        variants = ", ".join(instance.variants)
        reader.gaps.append(f"{instance.id} ({variants}) is not finished: {status.state}.")
    return StageRecord(
        status=status,
        attempts=tuple(_attempt(reader, instance, a) for a in status.attempts),
        manifest=manifest,
        storage=artifact.storage,
    )


def _manifest(reader: Reader, artifact: Artifact, instance: Instance) -> Mapping[str, Any]:
    return _mapping(reader.ask(f"{instance.id}: {MANIFEST}", artifact.manifest, None))


def _attempt(reader: Reader, instance: Instance, status: AttemptStatus) -> AttemptRecord:
    what, folder = f"{instance.leader} attempt {status.n}", status.folder
    return AttemptRecord(
        status=status,
        progress=_mapping(reader.ask(f"{what}: progress.json", lambda: folder.progress, None)),
        events=reader.ask(
            f"{what}: events", lambda: Counter(e["kind"] for e in folder.events()), Counter()
        ),
        tokens_per_s=reader.ask(
            f"{what}: metrics", lambda: _median_tokens_per_s(folder.storage), None
        ),
    )


def _median_tokens_per_s(attempt: Storage) -> float | None:
    lines = _json_lines(attempt, (n for n in attempt.children() if n.startswith("metrics-")))
    timed = (x for x in lines if x.get("step_s") and "tokens_seen" in x)  # a language model's
    rates = sorted(x["tokens_seen"] / x["step"] / x["step_s"] for x in timed)
    return rates[len(rates) // 2] if rates else None


def _variant(
    reader: Reader,
    row: Mapping[str, Any],
    recipe: Recipe | None,
    stages: Mapping[str, StageRecord],
) -> VariantRecord:
    instances = row["instances"]
    train = stages.get(instances.get("train", ""))
    retired = instances.get(RETIRED, "")  # both scores, in runs of earlier versions
    perplexity, continuations = (
        stages.get(instances.get(name, retired)) for name in ("perplexity", "continuations")
    )
    return VariantRecord(
        name=str(row["name"]),
        overrides=row["overrides"],
        instances=instances,
        recipe=recipe,
        training=_curve(reader, train, "metrics"),
        validation=_curve(reader, train, "validation"),
        scores=_mapping(_finished_json(reader, perplexity, "scores.json")),
        continuations=_finished_json(reader, continuations, "continuations.json"),
    )


def _finished_json(reader: Reader, stage: StageRecord | None, path: str) -> Any:
    if stage is None or not stage.is_complete:
        return None
    return reader.ask(f"{stage.instance.id}: {path}", lambda: stage.storage.read_json(path), None)


def _curve(reader: Reader, train: StageRecord | None, name: str) -> tuple[Point, ...]:
    """Losses by step: the finished sequence, or as far as the newest checkpoint."""
    if train is None:
        return ()
    what, out = f"{train.instance.id}: {name}.jsonl", train.storage
    if train.is_complete:
        return reader.ask(what, lambda: _points(_json_lines(out, [f"{name}.jsonl"])), ())
    return reader.ask(what, lambda: _points(_json_lines(out, _segments(out, name))), ())


def _segments(out: Storage, name: str) -> list[str]:
    """Metric files on the chain of the newest attempt's newest checkpoint."""
    head = checkpoints.head_of(checkpoints.committed(out))
    return [segment.path for segment in getattr(head, name)] if head else []


def _text(storage: Storage, path: str) -> str:
    return storage.read_bytes(path).decode()


def _json_lines(storage: Storage, paths: Iterable[str]) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in paths
        for line in storage.read_bytes(path).splitlines()
        if line.strip()
    ]


def _points(lines: Iterable[Mapping[str, Any]]) -> tuple[Point, ...]:
    losses = ((int(line["step"]), line["loss"]) for line in lines)
    return tuple((step, math.nan if loss is None else float(loss)) for step, loss in losses)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
