"""Which nodes a recipe has, and what each of them reads: a pure function of the recipe.

A node is a stage with a name of its own, so that a stage can stand in a plan more than once:
``suite_scores.swuggy`` and ``suite_scores.sblimp``. The scores are the sections of the recipe's
``evaluate``; what they read beyond the model, such as the audio of a suite, is more nodes here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from orchestrator.errors import RequestError
from orchestrator.plan.stages import BY_NAME, Stage
from orchestrator.spec.recipe import Recipe

UNIT_QUALITY = "unit_quality"
"""The section of ``evaluate`` that needs no language model."""
_PART = re.compile(r"[a-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Node:
    """One piece of work of a recipe; its name is in no key."""

    stage: Stage
    part: str = ""
    """Tells apart the nodes of one stage: ``sblimp`` of ``suite_scores.sblimp``."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Role to the name of the node whose artifact is read as that."""

    def __post_init__(self) -> None:
        if not _PART.fullmatch(self.part) or not set(self.inputs) <= set(self.stage.roles):
            raise ValueError(f"{self}: no such part or role")

    @property
    def name(self) -> str:
        """The stage's name, and the part after a dot."""
        return f"{self.stage.name}.{self.part}" if self.part else self.stage.name


@dataclass(frozen=True)
class Scope:
    """How much of a recipe a run does: all of it, or what a stage needs."""

    stages: frozenset[str] = frozenset(BY_NAME)

    @property
    def pretrains(self) -> bool:
        """Whether it trains an encoder, where the recipe has one trained."""
        return "pretrain" in self.stages

    @property
    def clusters(self) -> bool:
        """Whether it fits a codebook."""
        return "codebook" in self.stages

    @property
    def splits(self) -> bool:
        """Whether it holds recordings out and cuts the others into windows."""
        return "pack" in self.stages

    @property
    def trains(self) -> bool:
        """Whether it trains a language model."""
        return "train" in self.stages


def nodes_of(recipe: Recipe) -> tuple[Node, ...]:
    """The nodes of one variant, each after those that it reads."""
    is_filtered = recipe.corpus.filter is not None
    corpus = "filter" if is_filtered else "corpus"
    units = {"corpus": corpus, "encoder": "encoder", "codebook": "codebook"}
    return (
        _node("corpus"),
        *([_node("filter", corpus="corpus")] if is_filtered else []),
        *_encoder_nodes(recipe, corpus),
        _node("codebook", corpus=corpus, encoder="encoder"),
        *([_node(UNIT_QUALITY, **units)] if recipe.evaluate.unit_quality else []),
        _node("tokenize", **units),
        _node("pack", tokenize="tokenize"),
        _node("train", pack="pack", codebook="codebook"),
        *(_node(name, pack="pack", train="train") for name in _scores(recipe)),
        *_suite_nodes(recipe),
    )


def nodes_until(recipe: Recipe, until: str) -> tuple[Node, ...]:
    """The nodes that answer to a stage's or a node's name, and all that those read.

    Raises RequestError when there is none.
    """
    nodes = nodes_of(recipe)
    needed = {node.name for node in nodes if until in (node.name, node.stage.name)}
    if not needed:
        names = dict.fromkeys(name for n in nodes for name in (n.stage.name, n.name))
        raise RequestError(f"--until: {until}: no such stage; the recipe has {', '.join(names)}")
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(node.inputs.values())
    return tuple(node for node in nodes if node.name in needed)


def _encoder_nodes(recipe: Recipe, corpus: str) -> Iterator[Node]:
    """Targets and training of each iteration of pretraining, and the encoder that comes of it.

    ``corpus``: the node whose recordings they are of.
    """
    model: dict[str, str] = {}
    for number, iteration in (
        enumerate(recipe.encoder.pretrain.iterations, start=1) if recipe.encoder.pretrain else ()
    ):
        earlier = {} if iteration.targets == "mfcc" else model
        yield _node(f"targets.{number}", corpus=corpus, **earlier)
        yield _node(f"pretrain.{number}", corpus=corpus, targets=f"targets.{number}")
        model = {"model": f"pretrain.{number}"}
    yield _node("encoder", **model)


def _scores(recipe: Recipe) -> Iterator[str]:
    """What is measured of the language model."""
    others = (UNIT_QUALITY, "suites")
    return (name for name, section in recipe.evaluate if section and name not in others)


def _suite_nodes(recipe: Recipe) -> Iterator[Node]:
    """The units of each suite, which all models of one codebook share, and each model's scores."""
    for name in recipe.evaluate.asked_suites:
        yield _node(f"suite_units.{name}", encoder="encoder", codebook="codebook")
        yield _node(f"suite_scores.{name}", units=f"suite_units.{name}", train="train")


def _node(name: str, **inputs: str) -> Node:
    stage, _, part = name.partition(".")
    return Node(stage=BY_NAME[stage], part=part, inputs=inputs)
