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
from orchestrator.spec.model import Spec
from orchestrator.spec.recipe import Pretrain, PretrainIteration, Recipe


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the recipe alone does not say, looked up before planning."""

    listings: Mapping[str, str] = field(default_factory=dict)
    """Source name to the digest of its listing, where the root is visible."""
    alignments: Mapping[str, str] = field(default_factory=dict)
    """Name in the cluster's ``data`` to the digest of the phone times that lie there."""
    suites: Mapping[str, str] = field(default_factory=dict)
    """Name in the cluster's ``data`` to the digest of the suite that lies there."""


Fields = Callable[[Recipe, Facts, str], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One kind of work, which several nodes of a plan may do."""

    name: str
    version: int
    fields: Fields
    """Everything of the recipe that decides the result of a node, under the recipe's own dotted
    keys; the text is the node's part: ``1`` of ``pretrain.1``."""
    roles: tuple[str, ...] = ()
    """What its artifacts are made of; a node may leave some of them out."""
    apart: tuple[str, ...] = ()
    """Inputs, as dotted keys, in which nodes may differ and still be done by one job: of one pass
    of the encoder."""
    alone: str = ""
    """An input with which a node is done by itself all the same."""
    runs_as: Literal["process", "workers", "ranks"] = "process"
    """One process; elastic workers, which may come and go; ranks, which start and end together."""
    counts: Literal["", "shards", "steps"] = ""
    """What its progress is counted in; the shards are those of the artifact it reads as corpus."""
    steps: Callable[[Recipe, str], int] | None = None
    """How many steps a node takes, where it counts steps."""
    total: str = ""
    """The field that says so; another training that differs in it alone may have done some."""
    obstacle: Callable[[Mapping[str, Any]], str] = lambda _: ""
    """What in its fields lets the first steps depend on how many follow; empty for nothing."""

    @property
    def module(self) -> str:
        """What ``python -m`` runs on a node."""
        return f"jobs.{self.name}"

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


def _of(*names: str) -> Fields:
    """The fields of these dotted names, sections without what `keyed` leaves out."""

    def fields(recipe: Recipe, _facts: Facts, _part: str) -> dict[str, Any]:
        chosen: dict[str, Any] = {}
        for name in names:
            *sections, leaf = name.split(".")
            here: dict[str, Any] = chosen
            value: Any = recipe
            for section in sections:
                here, value = here.setdefault(section, {}), getattr(value, section)
            value = getattr(value, leaf)
            here[leaf] = keyed(value) if isinstance(value, Spec) else value
        return chosen

    return fields


def _of_features(*names: str) -> Fields:
    """As `_of`, and what is taken of the encoder's layer where that is not its output."""
    named = _of("encoder.layer", *names)

    def fields(recipe: Recipe, facts: Facts, part: str) -> dict[str, Any]:
        chosen = named(recipe, facts, part)
        encoder = keyed(recipe.encoder)
        chosen["encoder"] |= {name: encoder[name] for name in ("output",) if name in encoder}
        return chosen

    return fields


def _corpus(recipe: Recipe, facts: Facts, _part: str) -> dict[str, Any]:
    names = [source.name for source in recipe.corpus.sources]
    listings = {name: facts.listings[name] for name in names if name in facts.listings}
    corpus = keyed(recipe.corpus)
    if recipe.corpus.keeps_unknown_languages:
        corpus["keeps_unknown_languages"] = True
    return {"corpus": corpus, "listing": listings}


def _filter(recipe: Recipe, _facts: Facts, _part: str) -> dict[str, Any]:
    assert recipe.corpus.filter, "only recipes that filter have such a node"
    return {"corpus": {"filter": keyed(recipe.corpus.filter)}}


def pretraining(recipe: Recipe, part: str) -> tuple[Pretrain, PretrainIteration]:
    """The recipe's pretraining, and the iteration that a node is a part of."""
    assert recipe.encoder.pretrain, "only recipes that pretrain have such nodes"
    return recipe.encoder.pretrain, recipe.encoder.pretrain.iterations[int(part) - 1]


def _targets(recipe: Recipe, _facts: Facts, part: str) -> dict[str, Any]:
    pretrain, iteration = pretraining(recipe, part)
    audio = ("max_hours", "seed", "conv_kernel", "conv_stride")
    fields = {name: value for name, value in keyed(pretrain).items() if name in audio}
    clusters = {"targets": iteration.targets, "num_clusters": iteration.num_clusters}
    return {"encoder": {"pretrain": {**fields, **clusters}}}


def _pretrain(recipe: Recipe, _facts: Facts, part: str) -> dict[str, Any]:
    pretrain, iteration = pretraining(recipe, part)
    elsewhere = ("iterations", "checkpoint")
    fields = {name: value for name, value in keyed(pretrain).items() if name not in elsewhere}
    own = {"iteration": int(part), "num_clusters": iteration.num_clusters, "steps": iteration.steps}
    return {"encoder": {"pretrain": {**fields, **own}}}


def _encoder(recipe: Recipe, _facts: Facts, _part: str) -> dict[str, Any]:
    encoder = recipe.encoder
    # Waves as they are were the only ones once, so that saying nothing means them where weights
    # alone are pinned; a commit pins what the model itself says of its waves.
    normalize: bool | str | None = encoder.normalize_waveform
    if normalize is None and not (encoder.sha256 or encoder.pretrain):
        normalize = "as the model says"
    waves: dict[str, Any] = {"normalize_waveform": normalize} if normalize else {}
    if encoder.pretrain:
        return {"encoder": waves} if waves else {}  # the model that it reads decides
    if encoder.sha256:
        return {"encoder": {"sha256": encoder.sha256, **waves}}
    return {"encoder": {"model": encoder.model, "revision": encoder.revision, **waves}}


_FITTED = _of_features("tokenizer.num_clusters", "tokenizer.fit_hours", "tokenizer.seed")
_CHECKED = _of_features("tokenizer.num_clusters", "tokenizer.seed")


def _codebook(recipe: Recipe, facts: Facts, part: str) -> dict[str, Any]:
    if (codebook := recipe.tokenizer.codebook) is None:
        return _FITTED(recipe, facts, part)
    fields = _CHECKED(recipe, facts, part)
    pin = {"sha256": codebook.sha256} if codebook.sha256 else keyed(codebook)
    fields["tokenizer"]["codebook"] = pin
    return fields


_JUDGED = _of_features("encoder.precision", "evaluate.unit_quality")


def _unit_quality(recipe: Recipe, facts: Facts, part: str) -> dict[str, Any]:
    judged = recipe.evaluate.unit_quality
    assert judged, "only recipes that judge units have such a node"
    alignments = facts.alignments.get(judged.alignments, "")
    return {**_JUDGED(recipe, facts, part), "alignments": alignments}


_PACKING = _of("train.context_length", "split")


def _pack(recipe: Recipe, facts: Facts, part: str) -> dict[str, Any]:
    # How much of each source is wanted is a matter of training.
    streams = {"mixture": "by source"} if recipe.mixture else {}
    return {**_PACKING(recipe, facts, part), **streams}


_TRAINING = _of(
    *("model", "seed", "train.global_batch_tokens", "train.steps", "train.optimizer"),
    *("train.schedule", "train.precision", "train.validate_every_steps"),
)


def _train(recipe: Recipe, facts: Facts, part: str) -> dict[str, Any]:
    fields = _TRAINING(recipe, facts, part)
    if recipe.mixture:
        fields["mixture"] = recipe.mixture_ratio
    if recipe.model.sha256:  # says which weights; the name is only where they are found
        del fields["model"]["text_model"], fields["model"]["revision"]
    return fields


def _cosine(fields: Mapping[str, Any]) -> str:
    kind = fields["train"]["schedule"]["kind"]
    is_tied = kind not in ("constant", "inverse_sqrt")
    return f"the {kind} schedule depends on train.steps from its first step on" if is_tied else ""


def _decay(_fields: Mapping[str, Any]) -> str:
    return "pretraining's learning rate falls towards its last step"


def _score(name: str, version: int = 1) -> Stage:
    """The stage of one section of ``evaluate``."""
    return Stage(
        name=name, version=version, fields=_of(f"evaluate.{name}"), roles=("pack", "train")
    )


_SUITE_UNITS = _of_features("encoder.precision", "tokenizer.deduplicate")


def _suite_units(recipe: Recipe, facts: Facts, part: str) -> dict[str, Any]:
    kind, data, _ = recipe.evaluate.asked_suites[part]
    suite = {"kind": kind, "listing": facts.suites.get(data, "")}
    return {**_SUITE_UNITS(recipe, facts, part), "suite": suite}


def _suite_scores(recipe: Recipe, _facts: Facts, part: str) -> dict[str, Any]:
    settings = keyed(recipe.evaluate.asked_suites[part].settings)
    elsewhere = ("kind", "data")  # the units that it reads are of them
    return {"suite": {name: value for name, value in settings.items() if name not in elsewhere}}


_VIEW = ("fields.encoder.layer", "fields.encoder.output")
"""What is taken of an encoder."""

STAGES: tuple[Stage, ...] = (
    Stage(name="corpus", version=4, fields=_corpus, runs_as="workers"),
    Stage(name="filter", version=2, fields=_filter, roles=("corpus",), runs_as="workers"),
    Stage(name="targets", version=2, fields=_targets, roles=("corpus", "model"), runs_as="workers"),
    Stage(
        name="pretrain",
        version=1,
        fields=_pretrain,
        roles=("corpus", "targets"),
        runs_as="ranks",
        counts="steps",
        steps=lambda recipe, part: pretraining(recipe, part)[1].steps,
        total="encoder.pretrain.steps",
        obstacle=_decay,
    ),
    Stage(name="encoder", version=1, fields=_encoder, roles=("model",)),
    Stage(
        name="codebook",
        version=2,
        fields=_codebook,
        roles=("corpus", "encoder"),
        apart=(*_VIEW, "fields.tokenizer.num_clusters"),
        alone="fields.tokenizer.codebook",  # what one is refused for is no matter of the others
        runs_as="workers",
    ),
    Stage(
        name="unit_quality",
        version=1,
        fields=_unit_quality,
        roles=("corpus", "encoder", "codebook"),
        runs_as="workers",
    ),
    Stage(
        name="tokenize",
        version=2,
        fields=_of_features("encoder.precision", "tokenizer.deduplicate"),
        roles=("corpus", "encoder", "codebook"),
        apart=(*_VIEW, "upstream.codebook"),
        runs_as="workers",
        counts="shards",
    ),
    Stage(name="pack", version=1, fields=_pack, roles=("tokenize",)),
    Stage(
        name="train",
        version=2,
        fields=_train,
        roles=("pack", "codebook"),
        runs_as="ranks",
        counts="steps",
        steps=lambda recipe, _: recipe.train.steps,
        total="train.steps",
        obstacle=_cosine,
    ),
    _score("perplexity", version=2),
    _score("continuations"),
    Stage(
        name="suite_units",
        version=1,
        fields=_suite_units,
        roles=("encoder", "codebook"),
        apart=("upstream.codebook",),
        runs_as="workers",
    ),
    Stage(
        name="suite_scores",
        version=1,
        fields=_suite_scores,
        roles=("units", "train"),
        runs_as="workers",
    ),
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
