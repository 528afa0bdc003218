from __future__ import annotations

import pytest

from orchestrator.errors import RequestError
from orchestrator.plan.device_memory import SHAPES, Device
from orchestrator.plan.execution import dividing, execution_of, pretrain_execution
from orchestrator.spec.cluster import Resources
from orchestrator.spec.recipe import Execution, Pretrain, Train


def train(
    sequences: int, *, context_length: int = 128, precision: str = "fp32", **execution: object
) -> Train:
    fields = {
        "context_length": context_length,
        "global_batch_tokens": sequences * context_length,
        "steps": 1,
        "precision": precision,
        "execution": Execution.model_validate(execution) if execution else None,
    }
    return Train.model_validate(fields)


@pytest.mark.parametrize(
    ("sequences", "ranks", "context_length", "micro_batch"),
    [(32, 1, 128, 32), (32, 4, 128, 8), (256, 1, 1024, 16), (24, 1, 1024, 12), (6, 2, 65_536, 1)],
)
def test_derived_micro_batch(
    sequences: int, ranks: int, context_length: int, micro_batch: int
) -> None:
    asked = train(sequences, context_length=context_length)
    assert execution_of(asked, ranks).micro_batch == micro_batch


@pytest.mark.parametrize(
    ("ranks", "precision", "zero_stage"),
    [(1, "fp32", 0), (2, "fp32", 0), (1, "bf16", 1), (2, "bf16", 1)],
)
def test_derived_zero_stage_is_the_same_for_any_number_of_ranks(
    ranks: int, precision: str, zero_stage: int
) -> None:
    asked = train(8, precision=precision)
    assert execution_of(asked, ranks).zero_stage == zero_stage


def test_what_the_recipe_says_is_used() -> None:
    asked = train(32, zero_stage=3, micro_batch=2)
    assert execution_of(asked, 16) == asked.execution


def test_a_batch_that_does_not_divide_names_sizes_that_do() -> None:
    with pytest.raises(RequestError) as raised:
        execution_of(train(32), 3)
    assert str(raised.value) == (
        "train.global_batch_tokens: 4096 is 32 sequences of 128, which 3 ranks cannot "
        "share equally; use 3840 or 4224 tokens, or a number of ranks out of 1, 2, 4, 8, 16, 32"
    )


def test_more_ranks_than_sequences() -> None:
    with pytest.raises(RequestError, match=r"use 512 tokens, or a number of ranks out of 1, 2$"):
        execution_of(train(2), 4)


def test_a_micro_batch_that_does_not_divide_names_those_that_do() -> None:
    with pytest.raises(
        RequestError, match=r"3 does not divide the 16 .* give one of 1, 2, 4, 8, 16$"
    ):
        execution_of(train(32, micro_batch=3), 2)


def test_bf16_needs_zero() -> None:
    with pytest.raises(RequestError, match="give 1 or more, or precision fp32"):
        execution_of(train(32, precision="bf16", micro_batch=2), 1)


def test_a_micro_batch_that_did_not_fit_is_made_smaller_at_the_same_global_batch() -> None:
    assert execution_of(train(32, micro_batch=8), 2, max_micro_batch=4).micro_batch == 4
    assert execution_of(train(12), 2, max_micro_batch=4).micro_batch == 3
    assert execution_of(train(32, micro_batch=2), 2, max_micro_batch=4).micro_batch == 2


LLAMA_7B = SHAPES["huggyllama/llama-7b"]
OFFLOADED = {
    "zero_stage": 3, "micro_batch": 1, "offload": True, "activation_checkpointing": True,
}  # fmt: skip
LONG = train(1024, context_length=2048, precision="bf16")


def device(gb: float, fewest_ranks: int, zero_stage: int | None = None) -> Device:
    return Device(
        shape=LLAMA_7B, num_bytes=gb * 1e9, fewest_ranks=fewest_ranks, zero_stage=zero_stage
    )


@pytest.mark.parametrize(
    ("gb", "ranks", "chosen"),
    # 6.5e9 weights: 13 GB in bf16, 26 GB of gradients, 78 GB of optimizer state; 9.1 GB of
    # activations a sequence, 0.8 GB where they are recomputed. Of an 80 GB device 68 are used.
    [
        (80, 32, {"zero_stage": 1, "micro_batch": 2}),
        (80, 8, {"zero_stage": 1, "micro_batch": 2}),
        (80, 4, {"zero_stage": 1, "micro_batch": 1}),
        (80, 2, {"zero_stage": 2, "micro_batch": 2, "activation_checkpointing": True}),
        (40, 8, {"zero_stage": 2, "micro_batch": 8, "activation_checkpointing": True}),
        (24, 8, {"zero_stage": 3, "micro_batch": 4, "activation_checkpointing": True}),
        (24, 2, OFFLOADED),
    ],
)
def test_an_execution_is_the_least_that_fits_the_device(
    gb: float, ranks: int, chosen: dict[str, object]
) -> None:
    found = execution_of(LONG, ranks, device=device(gb, ranks))
    assert found.model_dump(exclude_defaults=True) == chosen


def test_the_stage_is_that_of_the_smallest_world_and_of_what_has_begun() -> None:
    small = device(80, fewest_ranks=2)
    assert [execution_of(LONG, ranks, device=small).zero_stage for ranks in (2, 32, 128)] == [2] * 3
    begun = device(80, fewest_ranks=2, zero_stage=3)
    assert execution_of(LONG, 32, device=begun).zero_stage == 3
    stated = train(1024, context_length=2048, precision="bf16", zero_stage=1, micro_batch=1)
    assert execution_of(stated, 4, device=small) == stated.execution, "what a recipe says stands"
    fitting = execution_of(LONG, 32, max_micro_batch=1, device=small)
    assert fitting.micro_batch == 1, "what was too much is not tried again"


def test_what_fits_no_device_is_refused_with_what_it_takes() -> None:
    with pytest.raises(RequestError, match=r"gpu_memory_gb: 8 GB is too little .* on each of 2"):
        execution_of(LONG, 2, device=device(8, 2))
    with pytest.raises(RequestError, match=r"offloaded as far as ZeRO 1 can"):
        execution_of(LONG, 2, device=device(24, 2, zero_stage=1))


def test_a_rank_takes_all_its_crops_at_once_unless_they_did_not_fit() -> None:
    pretrain = Pretrain.model_validate({"batch_size": 12, "iterations": [{"steps": 1}]})
    assert pretrain_execution(pretrain, 2).micro_batch == 6
    assert pretrain_execution(pretrain, 2, max_micro_batch=4).micro_batch == 3
    with pytest.raises(
        RequestError, match=r"batch_size: 12 crops .* by 5 ranks; .* 1, 2, 3, 4, 6, 12"
    ):
        pretrain_execution(pretrain, 5)


def of_twelve(world_size: int) -> int:
    if 12 % world_size:
        raise RequestError(f"{world_size} ranks cannot share 12")
    return 12 // world_size


@pytest.mark.parametrize(
    ("nodes", "ranks", "found"),
    [
        ({"min": 1, "max": 6}, 1, [6, 4, 3, 2, 1]),
        ({"min": 2, "max": 5}, 1, [4, 3, 2]),
        ({"min": 1, "max": 4}, 2, [6, 4, 2]),
        ({"min": 2, "max": 2}, 1, [2]),
        (3, 2, [6]),
    ],
)
def test_the_sizes_are_those_that_divide_the_batch(
    nodes: object, ranks: int, found: list[int]
) -> None:
    resources = Resources.model_validate({"nodes": nodes, "ranks_per_node": ranks})
    assert [size.world_size for size in dividing(resources.sizes, of_twelve)] == found


def test_where_none_divides_the_largest_is_the_fault() -> None:
    resources = Resources.model_validate({"nodes": {"min": 7, "max": 8}})
    with pytest.raises(RequestError, match="8 ranks cannot share 12"):
        dividing(resources.sizes, of_twelve)
