"""The stages in the order of the data's path: what each reads, what decides it, who does it.

A stage's ``version`` is raised when its code starts to give other bytes for the same fields. Which
nodes of a recipe are of a stage, and what they read, is decided in `plan.graph`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.plan.keys import keyed
from orchestrator.spec.cluster import RETIRED
from orchestrator.spec.recipe import Pretrain, PretrainIteration, Recipe


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the recipe alone does not say, looked up before planning."""

    listings: Mapping[str, str] = field(default_factory=dict)
    """Source name to the digest of its listing, where the root is visible."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One kind of work, which several nodes of a plan may do."""

    name: str
    module: str
    """What ``python -m`` runs on a node."""
    version: int
    fields: Callable[[Recipe, Facts, str], dict[str, Any]]
    """Everything of the recipe that decides the result of a node, under the recipe's own dotted
    keys; the text is the node's part: ``1`` of ``pretrain.1``."""
    roles: tuple[str, ...] = ()
    """What its artifacts are made of; a node may leave some of them out."""
    grouped_over: str = ""
    """Role in which nodes may differ and still be done by one job, in one pass."""
    runs_as: Literal["process", "workers", "ranks"] = "process"
    """One process; elastic workers, which may come and go; ranks, which start and end together."""
    counts: Literal["", "shards", "steps"] = ""
    """What its progress is counted in; the shards are those of the artifact it reads as corpus."""
    steps: Callable[[Recipe, str], int] | None = None
    """How many steps a node takes, where it counts steps."""

    @property
    def uses_ray(self) -> bool:
        """Whether it needs the run's Ray session."""
        return self.runs_as != "process"

    @property
    def is_elastic(self) -> bool:
        """Whether its workers may come and go."""
        return self.runs_as == "workers"

    @property
    def has_ranks(self) -> bool:
        """Whether it trains in steps on ranks."""
        return self.runs_as == "ranks"


def _corpus(recipe: Recipe, facts: Facts, _part: str) -> dict[str, Any]:
    listings = {
        s.name: facts.listings[s.name] for s in recipe.corpus.sources if s.name in facts.listings
    }
    return {"corpus": keyed(recipe.corpus), "listing": listings}


def _pretraining(recipe: Recipe, part: str) -> tuple[Pretrain, PretrainIteration]:
    """The recipe's pretraining, and the iteration that a node is a part of."""
    assert recipe.encoder.pretrain, "only recipes that pretrain have such nodes"
    return recipe.encoder.pretrain, recipe.encoder.pretrain.iterations[int(part) - 1]


def _targets(recipe: Recipe, _facts: Facts, part: str) -> dict[str, Any]:
    pretrain, iteration = _pretraining(recipe, part)
    audio = ("max_hours", "seed", "conv_kernel", "conv_stride")
    fields = {name: value for name, value in keyed(pretrain).items() if name in audio}
    clusters = {"targets": iteration.targets, "num_clusters": iteration.num_clusters}
    return {"encoder": {"pretrain": {**fields, **clusters}}}


def _pretrain(recipe: Recipe, _facts: Facts, part: str) -> dict[str, Any]:
    pretrain, iteration = _pretraining(recipe, part)
    elsewhere = ("iterations", "checkpoint")
    fields = {name: value for name, value in keyed(pretrain).items() if name not in elsewhere}
    own = {"iteration": int(part), "num_clusters": iteration.num_clusters, "steps": iteration.steps}
    return {"encoder": {"pretrain": {**fields, **own}}}


def _encoder(recipe: Recipe, _facts: Facts, _part: str) -> dict[str, Any]:
    encoder = recipe.encoder
    if encoder.pretrain:
        return {}  # the model that it reads decides
    pin = (
        {"sha256": encoder.sha256}
        if encoder.sha256
        else {"model": encoder.model, "revision": encoder.revision}
    )
    return {"encoder": pin}


def _codebook(recipe: Recipe, _facts: Facts, _part: str) -> dict[str, Any]:
    tokenizer = recipe.tokenizer
    return {
        "encoder": {"layer": recipe.encoder.layer},
        "tokenizer": {
            "num_clusters": tokenizer.num_clusters,
            "fit_hours": tokenizer.fit_hours,
            "seed": tokenizer.seed,
        },
    }


def _tokenize(recipe: Recipe, _facts: Facts, _part: str) -> dict[str, Any]:
    return {
        "encoder": {"layer": recipe.encoder.layer, "precision": recipe.encoder.precision},
        "tokenizer": {"deduplicate": recipe.tokenizer.deduplicate},
    }


def _pack(recipe: Recipe, _facts: Facts, _part: str) -> dict[str, Any]:
    return {
        "train": {"context_length": recipe.train.context_length},
        "split": keyed(recipe.split),
    }


def _train(recipe: Recipe, _facts: Facts, _part: str) -> dict[str, Any]:
    train = recipe.train
    model = keyed(recipe.model)
    if model["sha256"]:  # the digest says which weights; the name is only where they are found
        model = {
            name: value for name, value in model.items() if name not in ("text_model", "revision")
        }
    return {
        "model": model,
        "seed": recipe.seed,
        "train": {
            "global_batch_tokens": train.global_batch_tokens,
            "steps": train.steps,
            "optimizer": keyed(train.optimizer),
            "schedule": keyed(train.schedule),
            "precision": train.precision,
            "validate_every_steps": train.validate_every_steps,
        },
    }


def _score(name: str) -> Stage:
    """The stage of one section of ``evaluate``."""

    def fields(recipe: Recipe, _facts: Facts, _part: str) -> dict[str, Any]:
        return {"evaluate": {name: keyed(getattr(recipe.evaluate, name))}}

    roles = ("pack", "train")
    return Stage(name=name, module=f"jobs.{name}", version=1, fields=fields, roles=roles)


STAGES: tuple[Stage, ...] = (
    Stage(
        name="corpus",
        module="jobs.corpus",
        version=2,
        fields=_corpus,
    ),
    Stage(
        name="targets",
        module="jobs.targets",
        version=1,
        fields=_targets,
        roles=("corpus", "model"),
        runs_as="workers",
    ),
    Stage(
        name="pretrain",
        module="jobs.pretrain",
        version=1,
        fields=_pretrain,
        roles=("corpus", "targets"),
        runs_as="ranks",
        counts="steps",
        steps=lambda recipe, part: _pretraining(recipe, part)[1].steps,
    ),
    Stage(
        name="encoder",
        module="jobs.encoder",
        version=1,
        fields=_encoder,
        roles=("model",),
    ),
    Stage(
        name="codebook",
        module="jobs.codebook",
        version=1,
        fields=_codebook,
        roles=("corpus", "encoder"),
        runs_as="workers",
    ),
    Stage(
        name="tokenize",
        module="jobs.tokenize",
        version=1,
        fields=_tokenize,
        roles=("corpus", "encoder", "codebook"),
        grouped_over="codebook",
        runs_as="workers",
        counts="shards",
    ),
    Stage(
        name="pack",
        module="jobs.pack",
        version=1,
        fields=_pack,
        roles=("tokenize",),
    ),
    Stage(
        name="train",
        module="jobs.train",
        version=2,
        fields=_train,
        roles=("pack", "codebook"),
        runs_as="ranks",
        counts="steps",
        steps=lambda recipe, _: recipe.train.steps,
    ),
    _score("perplexity"),
    _score("continuations"),
)

BY_NAME: dict[str, Stage] = {stage.name: stage for stage in (*STAGES, _score(RETIRED))}
"""Stages by name, the one that only runs of earlier versions have included."""


def inputs_of(
    stage: Stage, part: str, recipe: Recipe, facts: Facts, upstream_keys: Mapping[str, str]
) -> dict[str, Any]:
    """Everything the key of a node is made of; ``upstream_keys`` by role, never by name."""
    return {
        "stage": stage.name,
        "version": stage.version,
        "fields": stage.fields(recipe, facts, part),
        "upstream": dict(upstream_keys),
    }
