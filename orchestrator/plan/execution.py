"""How a global batch is shared by ranks: micro-batch and ZeRO stage, for any number of ranks.

Pure, so that a split that cannot be is refused before anything starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from orchestrator.errors import RequestError
from orchestrator.spec.cluster import Resources
from orchestrator.spec.recipe import Execution, Pretrain, Recipe, Train

MAX_MICRO_BATCH_TOKENS = 16_384


def execution_of(train: Train, world_size: int, max_micro_batch: int | None = None) -> Execution:
    """The recipe's execution, or one derived. Raises RequestError when the batch does not divide.

    Derived: the largest micro-batch that divides a rank's share and stays within 16,384 tokens; in
    bf16 ZeRO 1, because DeepSpeed keeps fp32 optimizer state only there, else 0. Not by the number
    of ranks, so that a training may move to another number of them. ``max_micro_batch`` is what an
    earlier attempt found to fit the device's memory: the global batch stays, more is accumulated.
    """
    share, rest = divmod(train.global_batch, world_size)
    if rest or not share:
        raise RequestError(_indivisible(train, world_size))
    largest = max(1, MAX_MICRO_BATCH_TOKENS // train.context_length)
    execution = train.execution or Execution(
        zero_stage=int(train.precision == "bf16"), micro_batch=_divisor(share, largest)
    )
    if share % execution.micro_batch:
        raise RequestError(
            f"train.execution.micro_batch: {execution.micro_batch} does not divide the {share} "
            f"sequences of each of {world_size} ranks; give one of {_divisors(share)}"
        )
    if train.precision == "bf16" and execution.zero_stage == 0:
        raise RequestError(
            "train.execution.zero_stage: 0 would keep the optimizer's state in bf16; "
            "give 1 or more, or precision fp32"
        )
    if execution.offload and execution.zero_stage == 0:
        raise RequestError(
            "train.execution.offload: without ZeRO nothing is moved to the host; "
            "give zero_stage 1 or more, or leave offload out"
        )
    if max_micro_batch and execution.micro_batch > max_micro_batch:
        return execution.model_copy(update={"micro_batch": _divisor(share, max_micro_batch)})
    return execution


def pretrain_execution(
    pretrain: Pretrain, world_size: int, max_micro_batch: int | None = None
) -> Execution:
    """How ranks share a batch of crops: all of a rank's at once, where they fit the device.

    In bf16 by ZeRO 1, as `execution_of` says.
    Raises RequestError when the batch does not divide.
    """
    share, rest = divmod(pretrain.batch_size, world_size)
    if rest or not share:
        raise RequestError(
            f"encoder.pretrain.batch_size: {pretrain.batch_size} crops cannot be shared equally by "
            f"{world_size} ranks; use a number of ranks out of {_divisors(pretrain.batch_size)}"
        )
    return Execution(
        zero_stage=int(pretrain.precision == "bf16"),
        micro_batch=_divisor(share, max_micro_batch or share),
    )


def _divisor(share: int, at_most: int) -> int:
    """The largest divisor of a rank's share that is not above a limit."""
    return max(n for n in range(1, min(share, at_most) + 1) if share % n == 0)


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def _indivisible(train: Train, world_size: int) -> str:
    step = train.context_length * world_size
    below = train.global_batch // world_size * step
    sizes = " or ".join(str(size) for size in (below, below + step) if size)
    return (
        f"train.global_batch_tokens: {train.global_batch_tokens} is {train.global_batch} sequences "
        f"of {train.context_length}, which {world_size} ranks cannot share equally; "
        f"use {sizes} tokens, or a number of ranks out of {_divisors(train.global_batch)}"
    )


def dividing(sizes: Sequence[Resources], split: Callable[[int], object]) -> tuple[Resources, ...]:
    """Those whose ranks can share a batch.

    ``split`` raises RequestError for a number of ranks that cannot. Raises it when none can.
    """
    found, refused = [], None
    for size in sizes:
        try:
            split(size.world_size)
            found.append(size)
        except RequestError as error:
            refused = refused or error
    if refused and not found:
        raise refused
    return tuple(found)


def splits_of(recipe: Recipe) -> dict[str, Callable[[int], Execution]]:
    """How ranks share a batch, by the stages that have any."""
    pretrain = recipe.encoder.pretrain
    splits: dict[str, Callable[[int], Execution]] = {"train": partial(execution_of, recipe.train)}
    return splits | ({"pretrain": partial(pretrain_execution, pretrain)} if pretrain else {})
