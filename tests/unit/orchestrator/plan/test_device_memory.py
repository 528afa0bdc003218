"""What a training puts on each device, against published sizes and sums by hand."""

from __future__ import annotations

import pytest

from orchestrator.plan.device_memory import SHAPES, Shape, device_memory, device_of, shape_of
from orchestrator.spec.cluster import Resources
from orchestrator.spec.recipe import Execution
from tests.unit.orchestrator.recipes import recipe

AFTER_THE_SWAP = {
    "facebook/opt-125m": 87_015_936,
    "facebook/opt-350m": 305_714_176,
    "EleutherAI/pythia-160m": 85_827_072,
    "EleutherAI/pythia-410m": 303_339_520,
    "Qwen/Qwen2.5-0.5B": 358_347_904,
}
"""Parameters of published models with a vocabulary of 500 units."""


@pytest.mark.parametrize(("name", "size"), AFTER_THE_SWAP.items())
def test_parameters_of_published_models(name: str, size: int) -> None:
    assert SHAPES[name].num_parameters == pytest.approx(size, rel=0.03)


def test_billions_are_as_their_names_say() -> None:
    for name, billions in (("opt-1.3b", 1.2), ("llama-7b", 6.5), ("llama-13b", 12.7)):
        (found,) = (shape for known, shape in SHAPES.items() if known.endswith(name))
        assert found.num_parameters / 1e9 == pytest.approx(billions, rel=0.02)


def test_the_parts_by_hand() -> None:
    of = recipe(**{"train.precision": "bf16", "train.context_length": 64})
    shape = Shape(num_layers=10, width=1000, feed_forward=4000)
    count = 10 * 12 * 1000**2
    assert shape.num_parameters == count

    def parts(world_size: int, **execution: object) -> tuple[float, ...]:
        given = Execution.model_validate({"micro_batch": 2, **execution})
        return tuple(device_memory(of.train, shape, given, world_size))

    activations = 10 * 34 * 2 * 64 * 1000
    assert parts(1, zero_stage=1) == (2 * count, 4 * count, 12 * count, activations)
    assert parts(4, zero_stage=1) == (2 * count, 4 * count, 3 * count, activations)
    assert parts(4, zero_stage=2) == (2 * count, count, 3 * count, activations)
    assert parts(4, zero_stage=3) == (count / 2, count, 3 * count, activations)
    assert parts(4, zero_stage=1, offload=True)[2] == 0
    less = parts(4, zero_stage=1, activation_checkpointing=True)[3]
    assert less == (10 * 2 + 34) * 2 * 64 * 1000


def test_shapes_are_read_from_configs() -> None:
    llama = {
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    of = recipe()
    assert shape_of(of, llama) == Shape(2, 32, 64, 0.5, is_gated=True)
    opt = {
        "model_type": "opt", "num_hidden_layers": 2, "hidden_size": 32, "ffn_dim": 64,
        "num_attention_heads": 4,
    }  # fmt: skip
    assert shape_of(of, opt) == Shape(2, 32, 64)
    assert shape_of(of, {"model_type": "opt"}) is None
    assert shape_of(of) is None
    known = recipe(**{"model.text_model": "facebook/opt-125m", "model.num_layers": 3})
    assert shape_of(known) == Shape(3, 768, 3072)


def test_what_a_training_has_to_fit_into() -> None:
    of = recipe(**{"model.text_model": "facebook/opt-125m"})
    known = {"gpus_per_node": 8, "gpu_memory_gb": 80}

    def found(**resources: object) -> object:
        return device_of(of, Resources.model_validate(resources))

    device = device_of(of, Resources.model_validate({**known, "nodes": {"min": 2, "max": 4}}))
    assert device
    assert device.shape == SHAPES["facebook/opt-125m"]
    assert (device.num_bytes, device.fewest_ranks, device.zero_stage) == (80e9, 16, None)
    assert found(gpus_per_node=8) is None, "nobody said how much memory it has"
    assert found(gpu_memory_gb=80) is None, "it trains on CPUs"
    unknown = recipe(**{"model.text_model": "own-model"})
    assert device_of(unknown, Resources.model_validate(known)) is None
