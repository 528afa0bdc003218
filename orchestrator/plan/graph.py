"""Which nodes a recipe has, and what each of them reads: a pure function of the recipe.

A node is a stage with a name of its own, so that a stage can stand in a plan more than once:
``tokenize`` and ``tokenize.sblimp``. The scores are the sections of the recipe's
``evaluate``; what they read beyond the model, such as the audio of a suite, is more nodes here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from orchestrator.plan.stages import BY_NAME, Stage
from orchestrator.spec.recipe import Recipe

_PART = re.compile(r"[a-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Node:
    """One piece of work of a recipe; its name is in no key."""

    stage: Stage
    part: str = ""
    """Tells apart the nodes of one stage: ``sblimp`` of ``tokenize.sblimp``."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Role to the name of the node whose artifact is read as that."""

    def __post_init__(self) -> None:
        if not _PART.fullmatch(self.part) or not set(self.inputs) <= set(self.stage.roles):
            raise ValueError(f"{self}: no such part or role")

    @property
    def name(self) -> str:
        """The stage's name, and the part after a dot."""
        return f"{self.stage.name}.{self.part}" if self.part else self.stage.name


def nodes_of(recipe: Recipe) -> tuple[Node, ...]:
    """The nodes of one variant, each after those that it reads."""
    return (
        _node("corpus"),
        *_encoder_nodes(recipe),
        _node("codebook", corpus="corpus", encoder="encoder"),
        _node("tokenize", corpus="corpus", encoder="encoder", codebook="codebook"),
        _node("pack", tokenize="tokenize"),
        _node("train", pack="pack", codebook="codebook"),
        *(_node(name, pack="pack", train="train") for name, section in recipe.evaluate if section),
    )


def _encoder_nodes(recipe: Recipe) -> Iterator[Node]:
    """Targets and training of each iteration of pretraining, and the encoder that comes of it."""
    model: dict[str, str] = {}
    for number, iteration in (
        enumerate(recipe.encoder.pretrain.iterations, start=1) if recipe.encoder.pretrain else ()
    ):
        earlier = {} if iteration.targets == "mfcc" else model
        yield _node(f"targets.{number}", corpus="corpus", **earlier)
        yield _node(f"pretrain.{number}", corpus="corpus", targets=f"targets.{number}")
        model = {"model": f"pretrain.{number}"}
    yield _node("encoder", **model)


def _node(name: str, **inputs: str) -> Node:
    stage, _, part = name.partition(".")
    return Node(stage=BY_NAME[stage], part=part, inputs=inputs)
