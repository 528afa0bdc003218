"""What the report shows of a run, as plain data: what the ledger holds now, and what is missing.

In: a run's folder, its store, how it was observed. Out: a `Record`. Only the plan must be there:
every other file is read by itself, and one that is missing or broken becomes a line in ``gaps``
instead of an error, because a report is wanted most when something went wrong. Only JSON is read,
so that a machine without pyarrow can write the page.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    TypeAdapter,
    ValidationError,
    WrapValidator,
)

from orchestrator.ledger import checkpoints
from orchestrator.ledger.artifact import MANIFEST
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import (
    AttemptStatus,
    Observed,
    Reader,
    RunState,
    RunStatus,
    StageStatus,
    run_status,
)
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.store import Store
from orchestrator.plan.planner import Instance, Plan
from orchestrator.spec.cluster import RETIRED
from orchestrator.spec.model import NonNegativeFloat, PositiveFloat
from orchestrator.spec.recipe import Recipe

_T = TypeVar("_T")
Point = tuple[int, float]
"""Step and loss; NaN at a step that gave none."""


def _none_when_wrong(value: Any, check: Callable[[Any], Any]) -> Any:
    try:
        return check(value)
    except ValidationError:
        return None


_LENIENT = WrapValidator(_none_when_wrong)
"""A figure that is none hides no other."""


def _require_width(ends: tuple[float, float] | None) -> tuple[float, float] | None:
    """Raises ValueError for the interval of a single utterance, which says nothing of others."""
    if ends and ends[0] >= ends[1]:
        raise ValueError("an interval without width")
    return ends


_WIDE = AfterValidator(_require_width)


class Measure(BaseModel):
    """Perplexity of one model on one split, as ``scores.json`` has it."""

    model_config = ConfigDict(frozen=True)

    perplexity: PositiveFloat
    perplexity_95: Annotated[tuple[PositiveFloat, PositiveFloat] | None, _WIDE, _LENIENT] = None
    """Ends of the 95 % interval."""
    nats_per_s: Annotated[NonNegativeFloat | None, _LENIENT] = None
    """NLL per second of audio; 0 where every unit is certain."""
    nats_per_s_95: Annotated[tuple[NonNegativeFloat, NonNegativeFloat] | None, _WIDE, _LENIENT] = (
        None
    )
    """Ends of the 95 % interval."""

    @property
    def per_second_text(self) -> str:
        """``74.09 [73.50, 74.70]``; empty where it is not known."""
        if self.nats_per_s is None:
            return ""
        ends = self.nats_per_s_95
        interval = f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else ""
        return f"{self.nats_per_s:.2f}{interval}"

    @property
    def text(self) -> str:
        """``14.10 [13.80, 14.41]``."""
        ends = self.perplexity_95
        interval = f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else ""
        return f"{self.perplexity:.2f}{interval}"


class Scores(BaseModel):
    """``scores.json``."""

    splits: dict[str, dict[str, Measure]] = {}
    """By split, and there by model: the trained one or a baseline."""


_SCORES = TypeAdapter(Scores)
_CONTINUATIONS = TypeAdapter(tuple[Mapping[str, Any], ...])


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """One attempt of a stage instance."""

    status: AttemptStatus
    until: float | None
    """When it ended, in seconds since the epoch, or gave its last sign of life where nobody has
    seen it end; None while it runs."""
    progress: Mapping[str, Any]
    """How far it was at last: done, total, unit."""
    rates: Mapping[str, Any]
    """How fast it was at last."""
    events: Mapping[str, int]
    """How often each kind of event was recorded."""
    speeds: tuple[Point, ...]
    """Tokens per second at each optimizer step; empty when it did not train."""
    mfu: float | None
    """Median model FLOPs utilisation over its steps; None where the device's peak is unknown."""

    @property
    def tokens_per_s(self) -> float | None:
        """Median over its optimizer steps; None when it did not train."""
        return _median(speed for _, speed in self.speeds)


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One stage instance and what it has left in the store."""

    status: StageStatus
    attempts: tuple[AttemptRecord, ...]
    """Empty where the job of another instance does its work."""
    is_complete: bool
    """Whether the artifact has a manifest that can be read; what follows is empty otherwise."""
    facts: Mapping[str, Any]
    """What the stage reported about its result."""
    producer: Mapping[str, Any]
    """Run, attempt and package versions that made it."""
    sizes_bytes: tuple[int, ...]
    """One a file."""
    storage: Storage
    """The artifact's folder."""

    @property
    def instance(self) -> Instance:
        """What the plan says of it."""
        return self.status.instance

    @property
    def suite_name(self) -> str:
        """Of a suite: its own; a recipe that calls its section otherwise knows another by it."""
        name, called = str(self.facts.get("suite", "")), self.instance.part
        return name if called in ("", name.lower()) else f"{called} ({name})"


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
    """Loss of each step's batch, in nats per token."""
    validation: tuple[Point, ...]
    scores: Scores
    """Empty when there is no ``scores.json``."""
    continuations: tuple[Mapping[str, Any], ...]
    """``continuations.json``; empty when there is none."""
    learning_rate: tuple[Point, ...] = ()
    grad_norm: tuple[Point, ...] = ()
    """Norm of the gradient before clipping."""
    perplexity: StageRecord | None = None
    """The instance that scored it; None where the recipe asks for no such score."""

    @property
    def arm(self) -> str:
        """``warm`` or ``cold``."""
        swept = self.overrides.get("model.init")
        init = self.recipe.model.init if self.recipe else swept
        return "cold" if init == "cold" else "warm"


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

    def of_stage(self, *names: str) -> list[StageRecord]:
        """All instances of some stages, stage by stage."""
        return [s for name in names for s in self.stages if s.instance.stage == name]


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
        recipe_yaml=reader.ask(
            "recipe.yaml", lambda: run.storage.read_bytes("recipe.yaml").decode(), ""
        ),
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
    what = f"{instance.id}: {MANIFEST}"
    manifest = _mapping(reader.ask(what, artifact.manifest, None) if status.found.complete else {})
    if not manifest:
        variants = ", ".join(instance.variants)
        reader.gaps.append(f"{instance.id} ({variants}) is not finished: {status.state}.")
    own = status.attempts if instance.leader == instance.id else ()
    return StageRecord(
        status=status,
        attempts=tuple(
            _attempt(reader, f"{instance.id} attempt {a.n}", a, is_newest=a is own[-1]) for a in own
        ),
        is_complete=bool(manifest),
        facts=_mapping(manifest.get("facts")),
        producer=_mapping(manifest.get("producer")),
        sizes_bytes=tuple(f.get("size", 0) for f in _mapping(manifest.get("files")).values()),
        storage=artifact.storage,
    )


def _attempt(reader: Reader, what: str, status: AttemptStatus, *, is_newest: bool) -> AttemptRecord:
    folder = status.folder
    progress = _mapping(reader.ask(f"{what}: progress.json", lambda: folder.progress, None))
    kinds = reader.ask(f"{what}: events", lambda: [e["kind"] for e in folder.events()], [])
    speeds, mfu = reader.ask(f"{what}: metrics", lambda: _speeds(folder.storage), ((), None))
    until = status.ended_at
    if until is None and not (is_newest and status.state == RunState.RUNNING):
        until = reader.ask(f"{what}: events", folder.last_sign, status.started_at)
    return AttemptRecord(
        status=status,
        until=until,
        progress=progress,
        rates=_mapping(progress.get("rates")),
        events=Counter(kinds),
        speeds=speeds,
        mfu=mfu,
    )


def _speeds(attempt: Storage) -> tuple[tuple[Point, ...], float | None]:
    """Tokens per second by step, and the median MFU."""
    lines = _json_lines(attempt, (n for n in attempt.children() if n.startswith("metrics-")))
    timed = [x for x in lines if x.get("step_s") and "tokens_seen" in x]  # a language model's
    speeds = ((int(x["step"]), x["tokens_seen"] / x["step"] / x["step_s"]) for x in timed)
    return tuple(speeds), _median(x["mfu"] for x in timed if x.get("mfu"))


def _median(values: Iterable[float]) -> float | None:
    """The upper one of the two in the middle; None of nothing."""
    ranked = sorted(values)
    return ranked[len(ranked) // 2] if ranked else None


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
    metrics = _curves(reader, train, "metrics", ("loss", "lr", "grad_norm"))
    return VariantRecord(
        name=str(row["name"]),
        overrides=row["overrides"],
        instances=instances,
        recipe=recipe,
        training=metrics["loss"],
        learning_rate=metrics["lr"],
        grad_norm=metrics["grad_norm"],
        validation=_curves(reader, train, "validation", ("loss",))["loss"],
        perplexity=perplexity,
        scores=_finished(reader, perplexity, "scores.json", _SCORES, Scores()),
        continuations=_finished(reader, continuations, "continuations.json", _CONTINUATIONS, ()),
    )


def _finished(
    reader: Reader, stage: StageRecord | None, path: str, form: TypeAdapter[_T], default: _T
) -> _T:
    """A file of a finished artifact; the default, and a gap, where it has not that form."""
    if stage is None or not stage.is_complete:
        return default
    storage = stage.storage

    def read() -> _T:
        try:
            return form.validate_python(storage.read_json(path))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{place}: {first['msg']}") from None

    return reader.ask(f"{stage.instance.id}: {path}", read, default)


def _curves(
    reader: Reader, train: StageRecord | None, name: str, fields: Sequence[str]
) -> dict[str, tuple[Point, ...]]:
    """Some fields by step: the finished sequence, or as far as the newest checkpoint."""
    nothing: dict[str, tuple[Point, ...]] = dict.fromkeys(fields, ())
    if train is None:
        return nothing
    out, whole = train.storage, [f"{name}.jsonl"] if train.is_complete else None

    def read() -> dict[str, tuple[Point, ...]]:
        lines = _json_lines(out, whole or _segments(out, name))
        return {field: _points(lines, field) for field in fields}

    return reader.ask(f"{train.instance.id}: {name}.jsonl", read, nothing)


def _segments(out: Storage, name: str) -> list[str]:
    """Metric files on the chain of the newest attempt's newest checkpoint."""
    head = checkpoints.head_of(checkpoints.committed(out))
    return [segment.path for segment in getattr(head, name)] if head else []


def _json_lines(storage: Storage, paths: Iterable[str]) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in paths
        for line in storage.read_bytes(path).splitlines()
        if line.strip()
    ]


def _points(lines: Sequence[Mapping[str, Any]], field: str) -> tuple[Point, ...]:
    """Nothing of a field that no line has; a training that never had a loss has its NaN."""
    if not any(field in line for line in lines):
        return ()
    found = ((int(line["step"]), line.get(field)) for line in lines)
    return tuple((step, math.nan if value is None else float(value)) for step, value in found)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
