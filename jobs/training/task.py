"""What the runtime asks of whatever it trains: the language model (`jobs.lm.task`), HuBERT, ...

A rank builds its task from plain JSON: `RankConfig.task` names a class as ``module:Class``, which
is called with the RankConfig (its own part is ``config.spec``) and the RankGroup. The runtime owns
everything else: the order of samples, steps, optimizer, checkpoints, faults, metrics.

The loss of a micro-batch is a mean over its samples, every sample weighing the same, so that the
mean over equal micro-batches and ranks is the mean over the global batch for any number of ranks.
Whatever is drawn at random (crops, masks) must be a function of the sample's number and a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from jobs.training.group import RankGroup
from jobs.training.rank import RankConfig

Samples = npt.NDArray[np.int64]
"""Numbers of samples, each from 0 to ``num_samples`` - 1."""
MicroBatch = tuple[torch.Tensor, ...]
"""Samples along the first dimension of each tensor."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Of weights, by the precision of a training."""
LossOf = Callable[[MicroBatch], torch.Tensor]
Tick = Callable[[str], None]
"""Tells the heartbeat that work was done, and in which phase."""


class Task(Protocol):
    """A training, but for everything that all trainings share."""

    unit: str
    """What a sample consists of, for rates and counts: ``tokens``."""

    @property
    def units_per_sample(self) -> float:
        """How many of them a sample holds."""

    @property
    def num_samples(self) -> int:
        """Samples of an epoch; the order of training is made of their numbers."""

    def build_model(self) -> nn.Module:
        """The initial model on the CPU, the same bits on every rank."""

    def build_shell(self) -> nn.Module:
        """The initial model's shapes, whose weights ZeRO 3 brings from rank 0 one by one.

        A task whose models are small may give the model itself.
        """

    def flops_per_sample(self, model: nn.Module) -> float:
        """FLOPs of a sample's forward and backward pass; 0 when unknown."""

    def learning_rate(self, step: int) -> float:
        """The learning rate of optimizer step 1, 2, ..."""

    def read(self, samples: Samples) -> MicroBatch:
        """Some samples, on the CPU; called from another thread, ahead of their use."""

    def loss(self, module: nn.Module, micro_batch: MicroBatch) -> torch.Tensor:
        """The mean loss of a micro-batch, on the device; ``module`` wraps the model."""

    def validate(self, loss_of: LossOf, group: RankGroup, tick: Tick) -> dict[str, Any] | None:
        """Fields of a validation line, ``loss`` among them; None for a task without validation.

        Collective; every rank makes as many forward passes, for ZeRO 3.
        """

    def publish(self, model: nn.Module, state: Mapping[str, torch.Tensor], folder: Path) -> None:
        """Write the finished model's files below ``folder``, as they lie in the artifact.

        Rank 0 alone; ``state`` is the whole model on the CPU.
        """

    def facts(self, model: nn.Module) -> dict[str, Any]:
        """What the finished artifact says of the initial model and its data."""


def build_task(config: RankConfig, group: RankGroup) -> Task:
    """The task that a training names; a collective call."""
    module, _, name = config.task.partition(":")
    return cast(Task, getattr(import_module(module), name)(config, group))
