"""How a global batch is shared by ranks: micro-batch and ZeRO stage, for any number of ranks.

Pure, so that a split that cannot be is refused before anything starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

from orchestrator.errors import RequestError
from orchestrator.plan.device_memory import Device, device_memory, device_of
from orchestrator.quantities import format_bytes
from orchestrator.spec.cluster import Resources
from orchestrator.spec.recipe import Execution, Pretrain, Recipe, Train

MAX_MICRO_BATCH_TOKENS = 16_384


def execution_of(
    train: Train,
    world_size: int,
    max_micro_batch: int | None = None,
    device: Device | None = None,
) -> Execution:
    """The recipe's execution, or one derived for so many ranks.

    ``max_micro_batch`` is what an earlier attempt found to fit the device's memory: the global
    batch stays, more is accumulated. Raises RequestError when the batch does not divide, or when
    the training does not fit ``device``.
    """
    share, rest = divmod(train.global_batch, world_size)
    if rest or not share:
        raise RequestError(_indivisible(train, world_size))
    execution = train.execution or _derived(train, world_size, device)
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


def _derived(train: Train, world_size: int, device: Device | None) -> Execution:
    """What no recipe says: the least that makes a training fit, in the order of what it costs.

    The micro-batch is the largest that divides a rank's share and stays within 16,384 tokens. In
    bf16 ZeRO starts at 1, because DeepSpeed keeps fp32 optimizer state only there, else at 0.
    Where the device is known, a smaller micro-batch comes before recomputation, that before
    offload. The stage is chosen for the fewest ranks that the training may have, whatever it has
    now: its state is cut by it, and it may move to another number of them.
    """
    least = int(train.precision == "bf16")
    if device is None:
        micro_batch = next(_micro_batches(train, world_size))
        return Execution(zero_stage=least, micro_batch=micro_batch)
    stage = device.zero_stage
    if stage is None:
        stage = _stage(train, device, least)
    if found := _fitting(train, world_size, device, (stage,), (False, True)):
        return found
    raise _too_large(train, world_size, device, stage)


def _stage(train: Train, device: Device, least: int) -> int:
    """The lowest that fits without offload, else with it."""
    ranks, stages = device.fewest_ranks, range(least, 4)
    # A world that cannot share the batch at all has a message of its own.
    ranks = ranks if train.global_batch % ranks == 0 else 1
    for offload in (False, True):
        if found := _fitting(train, ranks, device, stages, (offload,)):
            return found.zero_stage
    raise _too_large(train, ranks, device, stages[-1])


def _fitting(
    train: Train,
    world_size: int,
    device: Device,
    stages: Sequence[int],
    offloads: Sequence[bool],
) -> Execution | None:
    """The first that fits."""
    for offload, stage, recomputes in product(offloads, stages, (False, True)):
        if offload and not stage:
            continue
        for micro_batch in _micro_batches(train, world_size):
            execution = Execution(
                zero_stage=stage,
                micro_batch=micro_batch,
                offload=offload,
                activation_checkpointing=recomputes,
            )
            if device.has_room(train, execution, world_size):
                return execution
    return None


def _micro_batches(train: Train, world_size: int) -> Iterator[int]:
    """Those that a rank's share allows, the largest first; one sequence is always among them."""
    share = train.global_batch // world_size
    largest = max(1, MAX_MICRO_BATCH_TOKENS // train.context_length)
    return (n for n in range(min(share, largest), 0, -1) if share % n == 0)


def _too_large(train: Train, world_size: int, device: Device, stage: int) -> RequestError:
    smallest = Execution(
        zero_stage=stage, micro_batch=1, offload=stage > 0, activation_checkpointing=True
    )
    needed = device_memory(train, device.shape, smallest, world_size).total
    return RequestError(
        f"gpu_memory_gb: {device.num_bytes / 1e9:g} GB is too little for one sequence of "
        f"{train.context_length} tokens, which takes {format_bytes(needed)} on each of "
        f"{world_size} ranks, recomputed and offloaded as far as ZeRO {stage} can, and a seventh "
        "more for all else; use more ranks, larger devices or fewer model.num_layers"
    )


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


def splits_of(
    recipe: Recipe, training: Resources, config: Mapping[str, Any] | None = None
) -> dict[str, Callable[[int], Execution]]:
    """How ranks share a batch, by the stages that have any.

    ``training``: the cluster's resources of it; ``config``: the text model's, where it is at hand.
    """
    device = device_of(recipe, training, config)
    pretrain = recipe.encoder.pretrain
    splits: dict[str, Callable[[int], Execution]]
    splits = {"train": partial(execution_of, recipe.train, device=device)}
    return splits | ({"pretrain": partial(pretrain_execution, pretrain)} if pretrain else {})
