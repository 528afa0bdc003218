"""What a training puts into the memory of each device, by part: an estimate, before any is used.

Formulas: ZeRO's parts (arXiv 1910.02054, section 3); activations of a transformer whose attention
keeps no matrix of scores (arXiv 2205.05198, section 4.1, without its ``5as/h``). A model's shape is
read from its config where that is at hand, else from `SHAPES`. What a framework keeps for itself,
and fragments, come on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.spec.cluster import Resources
from orchestrator.spec.recipe import Execution, Recipe, Train


class Shape(NamedTuple):
    """Sizes of a transformer that decide its memory."""

    num_layers: int
    width: int
    feed_forward: int
    key_share: float = 1.0
    """Heads of keys and values by heads of queries."""
    is_gated: bool = False
    """Whether a feed-forward layer has three matrices, as LLaMA's."""

    @property
    def num_parameters(self) -> int:
        """In its matrices; the table of units, norms and biases are below a hundredth."""
        attention = self.width**2 * (2 + 2 * self.key_share)
        feed_forward = self.width * self.feed_forward * (3 if self.is_gated else 2)
        return int(self.num_layers * (attention + feed_forward))


SHAPES: Mapping[str, Shape] = {
    "facebook/opt-125m": Shape(12, 768, 3072),
    "facebook/opt-350m": Shape(24, 1024, 4096),
    "facebook/opt-1.3b": Shape(24, 2048, 8192),
    "huggyllama/llama-7b": Shape(32, 4096, 11008, is_gated=True),
    "huggyllama/llama-13b": Shape(40, 5120, 13824, is_gated=True),
    "bigscience/bloom-560m": Shape(24, 1024, 4096),
    "EleutherAI/pythia-160m": Shape(12, 768, 3072),
    "EleutherAI/pythia-410m": Shape(24, 1024, 4096),
    "Qwen/Qwen2.5-0.5B": Shape(24, 896, 4864, key_share=1 / 7, is_gated=True),
}
"""Of published models, by their ids on the hub."""
_FAMILIES_WITH_GATES = frozenset(("gemma", "llama", "mistral", "phi3", "qwen2", "qwen3"))
_BYTES = {"bf16": 2, "fp32": 4}
_ACTIVATIONS_PER_CELL = 34
"""Bytes in 16 bits of a layer, a token and a feature."""
_SHARE = 0.85
"""Of a device's memory, for the parts that are counted here."""


class DeviceMemory(NamedTuple):
    """In bytes, of one device."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    """Of one micro-batch."""

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


def shape_of(recipe: Recipe, config: Mapping[str, Any] | None = None) -> Shape | None:
    """The shape of the recipe's language model; None where nobody knows it."""
    found = _shape_in(config) if config else None
    found = found or SHAPES.get(recipe.model.text_model)
    if found and recipe.model.num_layers:
        return found._replace(num_layers=min(found.num_layers, recipe.model.num_layers))
    return found


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a training has to fit into: the memory of each of its devices."""

    shape: Shape
    num_bytes: float
    fewest_ranks: int
    """Ranks of the smallest world that it may have."""
    zero_stage: int | None = None
    """That of a training which has begun, by which its state is cut."""

    def has_room(self, train: Train, execution: Execution, world_size: int) -> bool:
        """Whether it fits, with a seventh of the memory left for what is not counted."""
        parts = device_memory(train, self.shape, execution, world_size)
        return parts.total <= _SHARE * self.num_bytes


def device_of(
    recipe: Recipe,
    resources: Resources,
    config: Mapping[str, Any] | None = None,
    zero_stage: int | None = None,
) -> Device | None:
    """The device that a recipe's training has; None where its memory or the model is not known.

    ``resources``: the cluster's, of training; ``config``: the text model's, where it is at hand.
    """
    shape = shape_of(recipe, config)
    if shape is None or not resources.gpus_per_node or resources.gpu_memory_gb is None:
        return None
    return Device(
        shape=shape,
        num_bytes=resources.gpu_memory_gb * 1e9,
        fewest_ranks=resources.min_nodes * resources.local_world_size,
        zero_stage=zero_stage,
    )


def device_memory(
    train: Train, shape: Shape, execution: Execution, world_size: int
) -> DeviceMemory:
    """The parts of each of so many devices, by the training's precision and an execution."""
    precision, stage = train.precision, execution.zero_stage
    count, width = shape.num_parameters, _BYTES[precision]

    def shared(from_stage: int) -> float:
        return count / (world_size if stage >= from_stage else 1)

    # Adam's two moments in fp32, and weights in fp32 where those of the model are not.
    state = 8 if precision == "fp32" and stage == 0 else 12
    layer = execution.micro_batch * train.context_length * shape.width * width
    per_layer = layer * _ACTIVATIONS_PER_CELL / 2
    is_recomputed = execution.activation_checkpointing
    return DeviceMemory(
        weights=width * shared(3),
        gradients=4 * shared(2),
        optimizer=0.0 if execution.offload else state * shared(1),
        activations=shape.num_layers * layer + per_layer
        if is_recomputed
        else shape.num_layers * per_layer,
    )


def _shape_in(config: Mapping[str, Any]) -> Shape | None:
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
    if config.get("model_type") == "opt":
        names = ("num_hidden_layers", "hidden_size", "ffn_dim", "num_attention_heads")
    sizes = [config.get(name) for name in names]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return None
    num_layers, width, feed_forward, heads = (int(size) for size in sizes if size)
    return Shape(
        num_layers,
        width,
        feed_forward,
        key_share=int(config.get("num_key_value_heads") or heads) / heads,
        is_gated=config.get("model_type") in _FAMILIES_WITH_GATES,
    )
