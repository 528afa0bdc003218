"""The plan: which stage instances a recipe's variants need; for each whether to reuse or run it.

In: the variants of a recipe, facts about its data, what the store holds. Out: a `Plan`, plain data
that becomes ``plan.json``. Pure: nothing is looked up here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from orchestrator.plan.keys import key_of, nearest_changes
from orchestrator.plan.stages import STAGES, Facts, Stage, inputs_of
from orchestrator.spec.recipe import Recipe

Decision = Literal["reuse", "resume", "run"]

_MAX_CHANGES_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One point of a recipe's sweep."""

    name: str
    """``base`` without a sweep, else the swept values: ``init=cold,lr=0.001``."""
    overrides: Mapping[str, Any]
    """Dotted key to value."""
    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the store holds for one key."""

    complete: bool
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The finished artifact's facts."""
    shards_done: int = 0
    step: int = 0
    """Newest checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One stage with one key; variants that agree on the key share it."""

    id: str
    """``<stage>-<first 12 digits of the key>``."""
    stage: str
    key: str
    inputs: Mapping[str, Any]
    """What the key is the digest of."""
    needs: Mapping[str, str]
    """Upstream stage name to instance id."""
    variants: tuple[str, ...]
    leader: str
    """Instance whose job does the work: its own id, or another's that shares one HuBERT pass."""
    decision: Decision = "run"
    reason: str = ""
    """Why: the key input that changed, or what is there already."""
    shards_done: int = 0
    shards_total: int | None = None
    step: int = 0
    steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run consists of."""

    recipe: str
    """Name of the recipe."""
    run: str
    """Name of the run."""
    variants: tuple[Mapping[str, Any], ...]
    """Name, overrides and instance ids (by stage) of each variant."""
    instances: tuple[Instance, ...]
    """In an order in which each comes after what it needs."""

    def instance(self, instance_id: str) -> Instance:
        """The instance of an id. Raises KeyError."""
        return next(i for i in self.instances if i.id == instance_id)

    def group(self, leader: str) -> tuple[Instance, ...]:
        """The instances one job produces, the leader first."""
        members = [i for i in self.instances if i.leader == leader]
        return tuple(sorted(members, key=lambda i: i.id != leader))

    @property
    def leaders(self) -> tuple[Instance, ...]:
        """The instances that have a job of their own."""
        return tuple(i for i in self.instances if i.leader == i.id)

    def upstream(self, leader: str) -> set[str]:
        """The leaders of all that the job of an instance needs."""
        return {self.instance(n).leader for m in self.group(leader) for n in m.needs.values()}

    def chosen(self, stage: str | None) -> tuple[Instance, ...]:
        """The instances of a stage's name or an instance's id; all of them for None."""
        return tuple(i for i in self.instances if stage in (None, i.id, i.stage))

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Plan:
        """The plan of ``plan.json``."""
        instances = tuple(
            Instance(**{**i, "variants": tuple(i["variants"])}) for i in raw["instances"]
        )
        return cls(
            recipe=raw["recipe"],
            run=raw["run"],
            variants=tuple(raw["variants"]),
            instances=instances,
        )


Finder = Callable[[Mapping[str, str]], Mapping[str, Found]]
"""From ``{instance id: "stage/key"}`` to what is there."""


def make_plan(
    variants: Sequence[Variant],
    facts: Facts,
    *,
    found: Finder = lambda _: {},
    known_inputs: Callable[[str], Sequence[Mapping[str, Any]]] = lambda _: (),
    run: str | None = None,
) -> Plan:
    """The plan of all variants; ``run`` names the run, else its recipe and keys do."""
    instances, chosen = _instances(variants, facts)
    instances = _grouped(instances)
    there = found({i.id: f"{i.stage}/{i.key}" for i in instances})
    decided = _decided(instances, there, known_inputs)
    recipe = variants[0].recipe.name
    name = run or f"{recipe}-{key_of({'keys': sorted(i.key for i in decided)})[:8]}"
    rows = tuple(
        {"name": v.name, "overrides": dict(v.overrides), "instances": chosen[v.name]}
        for v in variants
    )
    return Plan(recipe=recipe, run=name, variants=rows, instances=decided)


def _instances(
    variants: Sequence[Variant], facts: Facts
) -> tuple[tuple[Instance, ...], dict[str, dict[str, str]]]:
    """All distinct instances in data order, and which of them each variant uses."""
    by_id: dict[str, Instance] = {}
    chosen: dict[str, dict[str, str]] = {v.name: {} for v in variants}
    for stage in STAGES:
        for variant in variants:
            instance = _instance(
                stage, variant, facts, {s: by_id[i] for s, i in chosen[variant.name].items()}
            )
            known = by_id.get(instance.id)
            by_id[instance.id] = (
                replace(known, variants=(*known.variants, variant.name)) if known else instance
            )
            chosen[variant.name][stage.name] = instance.id
    return tuple(by_id.values()), chosen


def _instance(
    stage: Stage, variant: Variant, facts: Facts, upstream: Mapping[str, Instance]
) -> Instance:
    needs = {name: upstream[name] for name in stage.upstream(variant.recipe)}
    inputs = inputs_of(stage, variant.recipe, facts, {name: i.key for name, i in needs.items()})
    key = key_of(inputs)
    instance_id = f"{stage.name}-{key[:12]}"
    return Instance(
        id=instance_id,
        stage=stage.name,
        key=key,
        inputs=inputs,
        needs={name: i.id for name, i in needs.items()},
        variants=(variant.name,),
        leader=instance_id,
        steps=variant.recipe.train.steps if stage.name == "train" else None,
    )


def _grouped(instances: Sequence[Instance]) -> tuple[Instance, ...]:
    """Tokenize instances that differ in codebook alone follow one leader: one HuBERT pass."""
    leaders: dict[str, str] = {}
    grouped = []
    for instance in instances:
        if instance.stage == "tokenize":
            inputs = dict(instance.inputs)
            upstream = {name: key for name, key in inputs["upstream"].items() if name != "codebook"}
            leader = leaders.setdefault(key_of({**inputs, "upstream": upstream}), instance.id)
            instance = replace(instance, leader=leader)
        grouped.append(instance)
    return tuple(grouped)


def _decided(
    instances: Sequence[Instance],
    there: Mapping[str, Found],
    known_inputs: Callable[[str], Sequence[Mapping[str, Any]]],
) -> tuple[Instance, ...]:
    corpora = {i.id: there[i.id].facts for i in instances if i.stage == "corpus" and i.id in there}
    decided: list[Instance] = []
    causes: dict[str, tuple[str, ...]] = {}
    for instance in instances:
        found = there.get(instance.id, Found(complete=False))
        total = corpora.get(instance.needs.get("corpus", ""), {}).get("num_shards")
        instance = _measured(instance, found, total)
        decision, reason = _decide(instance, found)
        if decision == "run":
            causes[instance.id] = _causes(instance, known_inputs(instance.stage), causes)
            reason = _listed(causes[instance.id]) or "nothing like it in the store"
        decided.append(replace(instance, decision=decision, reason=reason))
    return tuple(decided)


def _measured(instance: Instance, found: Found, num_shards: int | None) -> Instance:
    """The instance with how far it is, in shards where it tokenizes, else in steps."""
    if instance.stage != "tokenize":
        return replace(instance, step=(instance.steps or 0) if found.complete else found.step)
    done = found.shards_done
    if found.complete:
        done = num_shards or found.facts.get("num_shards", 0)
    return replace(instance, shards_done=done, shards_total=num_shards)


def _decide(instance: Instance, found: Found) -> tuple[Decision, str]:
    if found.complete:
        return "reuse", "complete in the store"
    if found.step:
        return "resume", f"step {found.step} of {instance.steps}"
    if found.shards_done:
        return "resume", f"{found.shards_done} of {instance.shards_total or '?'} shards"
    return "run", ""


def _causes(
    instance: Instance,
    known_inputs: Sequence[Mapping[str, Any]],
    causes: Mapping[str, tuple[str, ...]],
) -> tuple[str, ...]:
    """The key inputs that changed; for an upstream key, those that changed there, where known."""
    others = [inputs for inputs in known_inputs if key_of(inputs) != instance.key]
    roots: list[str] = []
    for change in nearest_changes(instance.inputs, others):
        stage = change.split(":")[0].removeprefix("upstream.")
        roots += causes.get(instance.needs.get(stage, ""), ()) or (change,)
    return tuple(dict.fromkeys(roots))


def _listed(changes: Sequence[str]) -> str:
    shown = "; ".join(changes[:_MAX_CHANGES_SHOWN])
    more = len(changes) - _MAX_CHANGES_SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown
