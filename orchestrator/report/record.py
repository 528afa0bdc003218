"""What the report shows of a run, as plain data: what the ledger holds now, and what is missing.

In: a run's folder and its store. Out: a `Record`. Only the plan must be there: every other file is
read by itself, and one that is missing or broken becomes a line in ``gaps`` instead of an error,
because a report is wanted most when something went wrong. Only JSON is read, so that a machine
without pyarrow can write the page.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml

from orchestrator.errors import OrchestratorError
from orchestrator.ledger.artifact import MANIFEST, Artifact
from orchestrator.ledger.attempt import AttemptFolder
from orchestrator.ledger.goodput import goodput
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.store import Store
from orchestrator.plan.planner import Instance, Plan
from orchestrator.spec.cluster import RETIRED
from orchestrator.spec.recipe import Recipe

Point = tuple[int, float]
"""Step and loss."""

_T = TypeVar("_T")
_BROKEN = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OrchestratorError,
    yaml.YAMLError,
)
"""What reading a missing, truncated or foreign file can raise."""


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """One attempt of a stage instance."""

    number: int
    state: str
    cause: str
    reason: str
    started_at: float
    ended_at: float | None
    """None while nobody has said that it ended."""
    node: str
    progress: Mapping[str, Any]
    """How far it said it was: done, total, unit, rates."""
    events: Mapping[str, int]
    """How often each kind of event was recorded."""
    tokens_per_s: float | None
    """Median over its optimizer steps; None when it did not train."""


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One stage instance and what it has left in the store."""

    instance: Instance
    state: str
    attempts: tuple[AttemptRecord, ...]
    """Of its leader, which does the work of the whole group."""
    manifest: Mapping[str, Any]
    """Empty while the artifact is incomplete."""
    storage: Storage
    """The artifact's folder."""

    @property
    def is_complete(self) -> bool:
        """Whether the artifact has a manifest."""
        return bool(self.manifest)

    @property
    def is_reused(self) -> bool:
        """Whether the artifact was there without any attempt of this run."""
        return self.is_complete and not self.attempts

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
    state: str
    recipe_yaml: str
    code: Mapping[str, Any]
    """Commit and package versions at submission."""
    stages: tuple[StageRecord, ...]
    variants: tuple[VariantRecord, ...]
    goodput: Mapping[str, float | None]
    gaps: tuple[str, ...]
    """What is not there, one sentence each."""

    def stage(self, instance_id: str) -> StageRecord:
        """The stage instance of an id. Raises KeyError."""
        return next(s for s in self.stages if s.instance.id == instance_id)

    def of_stage(self, name: str) -> tuple[StageRecord, ...]:
        """All instances of a stage."""
        return tuple(s for s in self.stages if s.instance.stage == name)


def read_record(run: RunFolder, store: Store) -> Record:
    """The record of a run as it is now. Raises RequestError when there is no such run."""
    reader = _Reader()
    plan = run.plan()
    is_alive = bool(reader.ask("supervisor", lambda: run.is_carried()))
    stages = tuple(_stage(reader, run, store, i, is_alive=is_alive) for i in plan.instances)
    by_id = {s.instance.id: s for s in stages}
    recipes = reader.ask("recipe.yaml", lambda: {v.name: v.recipe for v in run.variants()}) or {}
    return Record(
        run=run,
        plan=plan,
        state=_run_state(reader, run, stages, is_alive=is_alive),
        recipe_yaml=reader.ask("recipe.yaml", lambda: _text(run.storage, "recipe.yaml")) or "",
        code=_mapping(reader.ask("code.json", lambda: run.storage.read_json("code.json"))),
        stages=stages,
        variants=tuple(
            _variant(reader, row, recipes.get(row["name"]), by_id) for row in plan.variants
        ),
        goodput=_goodput(reader, run, plan, is_alive=is_alive),
        gaps=tuple(dict.fromkeys(reader.gaps)),
    )


@dataclass
class _Reader:
    """Asks questions that may have no answer, and remembers which had none."""

    gaps: list[str] = field(default_factory=list)

    def ask(self, what: str, question: Callable[[], _T]) -> _T | None:
        """The answer, or None and a gap named ``what``."""
        try:
            return question()
        except FileNotFoundError:
            self.gaps.append(f"{what} is missing.")
        except _BROKEN as error:
            self.gaps.append(f"{what} cannot be read ({type(error).__name__}: {error}).")
        return None


def _stage(
    reader: _Reader, run: RunFolder, store: Store, instance: Instance, *, is_alive: bool
) -> StageRecord:
    artifact = store.artifact(instance.stage, instance.key)
    folders = reader.ask(f"{instance.id}: attempts", lambda: run.attempts(instance.leader)) or ()
    rows = (_attempt(reader, instance, folder, is_alive=is_alive) for folder in folders)
    attempts = tuple(row for row in rows if row)
    manifest = _manifest(reader, artifact, instance)
    state = _stage_state(attempts, is_complete=bool(manifest), is_alive=is_alive)
    if not manifest:
        reader.gaps.append(
            f"{instance.id} ({', '.join(instance.variants)}) is not finished: {state}."
        )
    return StageRecord(
        instance=instance,
        state=state,
        attempts=attempts,
        manifest=manifest,
        storage=artifact.storage,
    )


def _manifest(reader: _Reader, artifact: Artifact, instance: Instance) -> Mapping[str, Any]:
    what = f"{instance.id}: {MANIFEST}"
    if not reader.ask(what, artifact.is_complete):
        return {}
    return _mapping(reader.ask(what, artifact.manifest))


def _attempt(
    reader: _Reader, instance: Instance, folder: AttemptFolder, *, is_alive: bool
) -> AttemptRecord | None:
    what = f"{instance.leader} attempt {folder.number}"
    started = _mapping(reader.ask(f"{what}: attempt.json", lambda: folder.started))
    if not isinstance(started.get("started_at"), int | float):
        return None
    end = _mapping(
        reader.ask(f"{what}: end.json", lambda: folder.end) or _no_end(is_alive=is_alive)
    )
    events = reader.ask(f"{what}: events", lambda: Counter(e["kind"] for e in folder.events()))
    return AttemptRecord(
        number=folder.number,
        state=str(end.get("state", "unknown")),
        cause=str(end.get("cause") or ""),
        reason=str(end.get("reason") or ""),
        started_at=float(started["started_at"]),
        ended_at=end.get("ended_at"),
        node=str(end.get("node") or started.get("node") or ""),
        progress=_mapping(reader.ask(f"{what}: progress.json", lambda: folder.progress)),
        events=events or {},
        tokens_per_s=reader.ask(f"{what}: metrics", lambda: _median_tokens_per_s(folder.storage)),
    )


def _no_end(*, is_alive: bool) -> dict[str, Any]:
    """Whoever could have written the end is still at work, or gone."""
    return {"state": "running"} if is_alive else {"state": "failed", "cause": "node_lost"}


def _median_tokens_per_s(attempt: Storage) -> float | None:
    lines = _json_lines(attempt, (n for n in attempt.children() if n.startswith("metrics-")))
    rates = sorted(x["tokens_seen"] / x["step"] / x["step_s"] for x in lines if x.get("step_s"))
    return rates[len(rates) // 2] if rates else None


def _stage_state(attempts: Sequence[AttemptRecord], *, is_complete: bool, is_alive: bool) -> str:
    if is_complete:
        return "succeeded"
    if not attempts:
        return "queued" if is_alive else "pending"
    last = attempts[-1].state
    if last in ("running", "cancelled"):
        return last
    return "queued" if is_alive else "failed"


def _run_state(
    reader: _Reader, run: RunFolder, stages: Sequence[StageRecord], *, is_alive: bool
) -> str:
    """The stages decide first: the supervisor writes this page while it is still alive."""
    if all(s.is_complete for s in stages):
        return "succeeded"
    if is_alive:
        return "running"
    ends = reader.ask("supervisor", lambda: [s.end for s in run.supervisors()])
    if not ends:
        return "failed" if any(s.attempts for s in stages) else "pending"
    return "cancelled" if _mapping(ends[-1]).get("state") == "cancelled" else "failed"


def _goodput(
    reader: _Reader, run: RunFolder, plan: Plan, *, is_alive: bool
) -> Mapping[str, float | None]:
    submitted_at = reader.ask("supervisor", run.submitted_at)
    parts = reader.ask(
        "attempts",
        lambda: goodput(
            {i.id: run.attempts(i.id) for i in plan.instances if i.leader == i.id},
            submitted_at=submitted_at,
            is_alive=is_alive,
        ),
    )
    return parts or {}


def _variant(
    reader: _Reader,
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


def _finished_json(reader: _Reader, stage: StageRecord | None, path: str) -> Any:
    if stage is None or not stage.is_complete:
        return None
    return reader.ask(f"{stage.instance.id}: {path}", lambda: stage.storage.read_json(path))


def _curve(reader: _Reader, train: StageRecord | None, name: str) -> tuple[Point, ...]:
    """Losses by step: the finished sequence, or as far as the newest checkpoint."""
    if train is None:
        return ()
    what, out = f"{train.instance.id}: {name}.jsonl", train.storage
    if train.is_complete:
        return reader.ask(what, lambda: _points(_json_lines(out, [f"{name}.jsonl"]))) or ()
    return reader.ask(what, lambda: _points(_json_lines(out, _segments(out, name)))) or ()


def _segments(out: Storage, name: str) -> list[str]:
    """Metric files on the chain of the newest attempt's newest checkpoint."""
    paths = (f"checkpoints/{folder}/{MANIFEST}" for folder in out.children("checkpoints"))
    committed = [out.read_json(path) for path in paths if out.exists(path)]
    if not committed:
        return []
    head = max(committed, key=lambda m: (m["lease_n"], m["step"]))
    return [segment["path"] for segment in head[name]]


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
    return tuple((int(line["step"]), float(line["loss"])) for line in lines)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
