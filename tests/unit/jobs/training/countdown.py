# ruff: noqa: ARG002 (a task need not use all it is given)
"""The smallest task there is, and what a rank of it is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from jobs.training.rank import RankConfig, TrainingSettings
from orchestrator.ledger.lease import Process
from orchestrator.spec.recipe import Checkpoint, Execution


class Countdown:
    """A model of one weight that learns the mean of the samples' numbers."""

    unit = "numbers"
    units_per_sample = 1
    num_samples = 24

    def __init__(self, config: RankConfig, group: object = None) -> None:
        self.config = config

    def build_model(self) -> nn.Module:
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 0.5)
        return model

    def build_shell(self) -> nn.Module:
        return self.build_model()

    def flops_per_sample(self, model: nn.Module) -> float:
        return 0.0

    def learning_rate(self, step: int) -> float:
        return 1.0 / step

    def read(self, samples: np.ndarray) -> tuple[torch.Tensor, ...]:
        return (torch.from_numpy(samples).float(),)

    def loss(self, module: nn.Module, micro_batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        (numbers_B,) = micro_batch
        return (module(torch.ones(len(numbers_B), 1))[:, 0] - numbers_B).square().mean()

    def validate(self, loss_of: Any, group: object, tick: object) -> dict[str, Any] | None:
        return {"loss": float(loss_of(self.read(np.arange(self.num_samples))))}

    def publish(self, model: nn.Module, state: Mapping[str, torch.Tensor], folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "weight.json").write_text(json.dumps(float(state["weight"])))

    def facts(self, model: nn.Module) -> dict[str, Any]:
        return {}


def rank_config(
    folder: Path, *, global_batch: int = 8, micro_batch: int = 2, **options: Any
) -> RankConfig:
    """What the ranks of a countdown are told."""
    (folder / "attempt").mkdir(parents=True, exist_ok=True)
    settings = {"steps": 12, "seed": 1, "precision": "fp32", **options.pop("settings", {})}
    return RankConfig(
        task="tests.unit.jobs.training.countdown:Countdown",
        spec={},
        settings=TrainingSettings.model_validate(
            {"global_batch": global_batch, "checkpoint": Checkpoint(every_steps=4), **settings}
        ),
        execution=Execution(micro_batch=micro_batch),
        out_url=str(folder / "out"),
        record_url=str(folder / "attempt"),
        folder=str(folder / "attempt"),
        scratch=str(folder / "scratch"),
        tracker="countdown",
        **{"lease_n": 1, "driver": Process.current(), **options},
    )
