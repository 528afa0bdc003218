"""The plan: which stage instances a recipe's variants need; for each whether to reuse or run it.

In: the variants of a recipe, facts about its data, what the store holds. Out: a `Plan`, plain data
that becomes ``plan.json``. Pure: nothing is looked up here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pydantic import TypeAdapter

from orchestrator.plan.extension import obstacle, relatives
from orchestrator.plan.graph import Node, Scope, nodes_of
from orchestrator.plan.keys import KEY_DIGITS, flatten, key_of, nearest_changes
from orchestrator.plan.stages import BY_NAME, Facts, inputs_of
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
    """One node with one key; variants and nodes that agree on the key share it."""

    id: str
    """``<node>-<first 12 digits of the key>``."""
    stage: str
    node: str
    """Name of the node, the first of those that share it: ``suite_scores.sblimp``."""
    key: str
    inputs: Mapping[str, Any]
    """What the key is the digest of."""
    needs: Mapping[str, str]
    """Role to the id of the instance that is read as that."""
    variants: tuple[str, ...]
    leader: str
    """Instance whose job does the work: its own id, or another's that shares one pass of the
    encoder."""
    decision: Decision = "run"
    reason: str = ""
    """Why: the key input that changed, or what is there already."""
    shards_done: int = 0
    shards_total: int | None = None
    step: int = 0
    steps: int | None = None
    extends: str = ""
    """``<stage>-<first 12 digits of the key>`` of the training that its first ``step`` steps are
    those of; empty when they are its own."""

    @property
    def part(self) -> str:
        """What tells its node apart from others of its stage."""
        return self.node.partition(".")[2]

    def answers_to(self, name: str | None) -> bool:
        """Whether a user means it by a stage's, node's or instance's name, or by naming none."""
        return name in (None, self.id, self.stage, self.node)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run consists of."""

    recipe: str
    """Name of the recipe."""
    run: str
    """Name of the run."""
    variants: tuple[Mapping[str, Any], ...]
    """Name, overrides and instance ids (by node) of each variant."""
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

    def chosen(self, name: str | None) -> tuple[Instance, ...]:
        """The instances of a stage's, a node's or an instance's name; all of them for None."""
        return tuple(i for i in self.instances if i.answers_to(name))

    @property
    def scope(self) -> Scope:
        """How much of the recipe it does."""
        return Scope(frozenset(i.stage for i in self.instances))

    @property
    def corpora(self) -> tuple[Instance, ...]:
        """The corpus and what its filter leaves of it, the first of several."""
        first = {i.stage: i for i in reversed(self.instances) if i.stage in ("corpus", "filter")}
        return tuple(sorted(first.values(), key=self.instances.index))

    @property
    def units(self) -> tuple[Instance, ...]:
        """The units, once for each codebook."""
        return tuple(i for i in self.instances if i.stage == "tokenize")

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that `chosen` knows, sorted."""
        return tuple(sorted({n for i in self.instances for n in (i.id, i.stage, i.node)}))

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Plan:
        """The plan of ``plan.json``; those that know no nodes have one to a stage.

        Raises KeyError, TypeError or ValueError for what is no plan.
        """
        rows = [{"node": row["stage"], **row} for row in raw["instances"]]
        plan = TypeAdapter(cls).validate_python({**raw, "instances": rows})
        ids = {i.id for i in plan.instances}
        named = {n for i in plan.instances for n in (i.leader, *i.needs.values())}
        if not ids or not plan.variants or named - ids:
            raise ValueError("stage instances are missing in it")
        return plan


Finder = Callable[[Mapping[str, str]], Mapping[str, Found]]
"""From ``{instance id: "stage/key"}`` to what is there."""


def make_plan(
    variants: Sequence[Variant],
    facts: Facts,
    *,
    found: Finder = lambda _: {},
    known_inputs: Callable[[str], Sequence[Mapping[str, Any]]] = lambda _: (),
    checkpoint_steps: Callable[[str, str], Sequence[int]] = lambda _stage, _key: (),
    run: str | None = None,
    nodes_of: Callable[[Recipe], Sequence[Node]] = nodes_of,
) -> Plan:
    """The plan of all variants; ``run`` names the run, else its recipe and keys do.

    ``known_inputs``: what the keys of a stage's artifacts are made of. ``checkpoint_steps``: what
    steps the checkpoints of a stage's artifact are of.
    """
    instances, chosen = _instances(variants, facts, nodes_of)
    instances = _grouped(instances)
    there = found({i.id: f"{i.stage}/{i.key}" for i in instances})
    decided = _decided(instances, there, known_inputs, checkpoint_steps)
    recipe = variants[0].recipe.name
    name = run or f"{recipe}-{key_of({'keys': sorted(i.key for i in decided)})[:8]}"
    rows = tuple(
        {"name": v.name, "overrides": dict(v.overrides), "instances": chosen[v.name]}
        for v in variants
    )
    return Plan(recipe=recipe, run=name, variants=rows, instances=decided)


def _instances(
    variants: Sequence[Variant], facts: Facts, nodes_of: Callable[[Recipe], Sequence[Node]]
) -> tuple[tuple[Instance, ...], dict[str, dict[str, str]]]:
    """All distinct instances in data order, and which of them each variant uses, by node."""
    by_key: dict[str, Instance] = {}
    chosen: dict[str, dict[str, Instance]] = {v.name: {} for v in variants}
    rows = [[(variant, node) for node in nodes_of(variant.recipe)] for variant in variants]
    in_order = (pair for column in itertools.zip_longest(*rows) for pair in column if pair)
    for variant, node in in_order:  # what comes first in any variant, each after what it reads
        mine = chosen[variant.name]
        upstream = {role: mine[name] for role, name in node.inputs.items()}
        instance = _instance(node, variant, facts, upstream)
        known = by_key.setdefault(instance.key, instance)
        if variant.name not in known.variants:
            by_key[instance.key] = replace(known, variants=(*known.variants, variant.name))
        mine[node.name] = known
    ids = {name: {node: i.id for node, i in mine.items()} for name, mine in chosen.items()}
    return tuple(by_key.values()), ids


def _instance(
    node: Node, variant: Variant, facts: Facts, upstream: Mapping[str, Instance]
) -> Instance:
    stage, recipe = node.stage, variant.recipe
    upstream_keys = {role: needed.key for role, needed in upstream.items()}
    inputs = inputs_of(stage, node.part, recipe, facts, upstream_keys)
    key = key_of(inputs)
    instance_id = f"{node.name}-{key[:KEY_DIGITS]}"
    return Instance(
        id=instance_id,
        stage=stage.name,
        node=node.name,
        key=key,
        inputs=inputs,
        needs={role: needed.id for role, needed in upstream.items()},
        variants=(variant.name,),
        leader=instance_id,
        steps=stage.steps(recipe, node.part) if stage.steps else None,
    )


def _grouped(instances: Sequence[Instance]) -> tuple[Instance, ...]:
    """Instances that one pass of the encoder can serve follow one leader."""
    leaders: dict[str, str] = {}
    grouped = []
    for instance in instances:
        stage, inputs = BY_NAME[instance.stage], flatten(instance.inputs)
        if stage.apart and not (stage.alone and any(n.startswith(stage.alone) for n in inputs)):
            common = key_of({n: value for n, value in inputs.items() if n not in stage.apart})
            instance = replace(instance, leader=leaders.setdefault(common, instance.id))
        grouped.append(instance)
    return tuple(grouped)


def _decided(
    instances: Sequence[Instance],
    there: Mapping[str, Found],
    known_inputs: Callable[[str], Sequence[Mapping[str, Any]]],
    checkpoint_steps: Callable[[str, str], Sequence[int]],
) -> tuple[Instance, ...]:
    corpora = {i.id: there[i.id].facts for i in instances if i.id in there}
    decided: list[Instance] = []
    causes: dict[str, tuple[str, ...]] = {}
    for instance in instances:
        found = there.get(instance.id, Found(complete=False))
        total = corpora.get(instance.needs.get("corpus", ""), {}).get("num_shards")
        instance = _measured(instance, found, total)
        decision, reason = _decide(instance, found)
        instance = replace(instance, decision=decision, reason=reason)
        if decision == "run":
            known = known_inputs(instance.stage)
            causes[instance.id] = _causes(instance, known, causes)
            reason = _listed(causes[instance.id]) or "nothing like it in the store"
            instance = _extending(replace(instance, reason=reason), known, checkpoint_steps)
        decided.append(instance)
    return tuple(decided)


def _extending(
    instance: Instance,
    known_inputs: Sequence[Mapping[str, Any]],
    checkpoint_steps: Callable[[str, str], Sequence[int]],
) -> Instance:
    """The instance as it goes on from the newest step of one of another length, if there is one."""
    last, stage = instance.steps or 0, instance.stage
    keys = [key_of(inputs) for inputs in relatives(instance.inputs, known_inputs)]
    usable = [(s, key) for key in keys for s in checkpoint_steps(stage, key) if s < last]
    if not usable:
        return instance
    step, key = max(usable)
    other = f"{stage}-{key[:KEY_DIGITS]}"
    if why := obstacle(instance.inputs):
        return replace(instance, reason=f"{instance.reason}; cannot extend {other}: {why}")
    reason = f"extends {other}, step {step:,} of {last:,}"
    return replace(instance, decision="resume", reason=reason, step=step, extends=other)


def _measured(instance: Instance, found: Found, num_shards: int | None) -> Instance:
    """The instance with how far it is, in shards or steps, whichever its stage counts."""
    if BY_NAME[instance.stage].counts != "shards":
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
    """The key inputs that changed since the nearest artifact; for an upstream key, those there.

    None where nothing is near, or where what it is made of is new.
    """
    others = [inputs for inputs in known_inputs if key_of(inputs) != instance.key]
    roots: list[str] = []
    for change in nearest_changes(instance.inputs, others):
        section, _, role = change.split(":")[0].partition(".")
        upstream = instance.needs.get(role, "") if section == "upstream" else ""
        if not causes.get(upstream, (change,)):
            return ()
        roots += causes.get(upstream, (change,))
    return tuple(dict.fromkeys(roots))


def _listed(changes: Sequence[str]) -> str:
    shown = "; ".join(changes[:_MAX_CHANGES_SHOWN])
    more = len(changes) - _MAX_CHANGES_SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown
