"""The language model as a task of the training runtime: its windows, its loss, its validation.

In: packed tokens, a text model, the recipe's ``model`` section. Out: ``model/`` in Hugging Face
format.

Every window has the same number of targets, so the mean over micro-batches and ranks is the mean
over the global batch, as defined for one rank.

Shape legend: B sequences, L1 = context length + 1 tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from jobs.lm.objective import flops_per_token, next_token_loss
from jobs.lm.spec import LanguageModelSpec
from jobs.lm.token_stream import Tokens, TokenStream, bin_name, open_tokens
from jobs.lm.twist import build_model, build_shell
from jobs.training.group import RankGroup
from jobs.training.rank import RankConfig
from jobs.training.task import DTYPES, LossOf, MicroBatch, Samples, Tick
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Schedule

MODEL_FOLDER = "model"
_MAX_VALID_WINDOWS = 256
_COSINE_FLOOR = 0.1


class LanguageModel:
    """A `jobs.training.task.Task`: next-unit prediction on windows of packed tokens."""

    unit = "tokens"

    def __init__(self, config: RankConfig, group: RankGroup) -> None:
        self._config = config
        self._spec = spec = LanguageModelSpec.model_validate(config.spec)
        train_bin, valid_bin = group.fetch(
            Storage(spec.pack_url), [bin_name("train"), bin_name("valid")],
            Path(config.scratch) / "tokens",
        )  # fmt: skip
        self._source = local_folder(
            Storage(spec.source), group, Path(config.scratch) / "text_model"
        )
        self._tokens = open_tokens(train_bin)
        self._stream = TokenStream(
            self._tokens,
            context_length=spec.context_length,
            stream_tokens=spec.stream_tokens,
        )
        self._valid_BL1 = validation_windows(open_tokens(valid_bin), spec.context_length)

    @property
    def units_per_sample(self) -> int:
        """Targets of a window."""
        return self._spec.context_length

    @property
    def num_samples(self) -> int:
        """Windows of the training split."""
        return self._stream.num_windows

    def build_model(self) -> Any:
        """The recipe's text model with one row per unit."""
        model = build_model(seed=self._config.settings.seed, tokens=self._tokens, **self._model())
        return self._ready(model)

    def build_shell(self) -> Any:
        """The same without its weights."""
        return self._ready(build_shell(**self._model()))

    def _model(self) -> dict[str, Any]:
        spec, config = self._spec, self._config
        return {
            "spec": spec.model,
            "source": str(self._source),
            "num_units": spec.num_units,
            "dtype": DTYPES[config.settings.precision],
            "attention": config.execution.attention,
        }

    def _ready(self, model: Any) -> Any:
        if self._config.execution.activation_checkpointing:
            model.gradient_checkpointing_enable()
        return model

    def flops_per_sample(self, model: nn.Module) -> float:
        """FLOPs of a window's forward and backward pass."""
        length = self._spec.context_length
        return flops_per_token(model, length) * length

    def learning_rate(self, step: int) -> float:
        """As the recipe's schedule says."""
        settings = self._config.settings
        return learning_rate(
            step, schedule=self._spec.schedule, peak=settings.optimizer.lr, steps=settings.steps
        )

    def read(self, samples: Samples) -> MicroBatch:
        """``tokens_BL1`` of some windows."""
        return (torch.from_numpy(self._stream.windows(samples)),)

    def loss(self, module: nn.Module, micro_batch: MicroBatch) -> torch.Tensor:
        """Mean NLL in nats over all targets of some windows."""
        (tokens_BL1,) = micro_batch
        return next_token_loss(module, tokens_BL1)

    def validate(self, loss_of: LossOf, group: RankGroup, tick: Tick) -> dict[str, Any] | None:
        """Mean NLL over the validation windows."""
        windows_BL1, info = self._valid_BL1, group.info
        if not len(windows_BL1):
            return None
        size = self._config.execution.micro_batch
        total = torch.zeros(1, dtype=torch.float64)
        for start in range(0, len(windows_BL1), size * info.world_size):
            own = windows_BL1[start + info.rank * size : start + (info.rank + 1) * size]
            batch_BL1 = torch.from_numpy(own if len(own) else windows_BL1[:1])
            total += float(loss_of((batch_BL1,))) * len(own)
            tick("validating")
        loss = float(group.sum(total)) / len(windows_BL1)
        return {"loss": loss, "num_windows": len(windows_BL1)}

    def publish(self, model: Any, state: Mapping[str, torch.Tensor], folder: Path) -> None:
        """Write ``model/`` in Hugging Face format."""
        model.save_pretrained(folder / MODEL_FOLDER, state_dict=dict(state))

    def facts(self, model: Any) -> dict[str, Any]:
        """Sizes of the model and of its data."""
        return {"num_parameters": model.num_parameters()}


def local_folder(model: Storage, group: RankGroup, into: Path) -> Path:
    """A model's folder on this node, brought from a remote store by the node's first rank."""
    if model.local_root:
        return model.local_root
    group.fetch(model, sorted(model.list()), into)
    return into


def learning_rate(step: int, *, schedule: Schedule, peak: float, steps: int) -> float:
    """The learning rate of optimizer step 1, 2, ... ``steps``.

    Linear warm-up to the peak, then constant; or peak * sqrt(warmup / step) (arXiv 1706.03762, eq.
    3); or half a cosine down to a tenth of the peak at the last step.
    """
    warmup = max(schedule.warmup_steps, 1)
    if step <= warmup:
        return peak * step / warmup
    if schedule.kind == "constant":
        return peak
    if schedule.kind == "inverse_sqrt":
        return peak * math.sqrt(warmup / step)
    done = (step - warmup) / max(steps - warmup, 1)
    return peak * (_COSINE_FLOOR + (1 - _COSINE_FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))


def validation_windows(tokens: Tokens, context_length: int) -> Samples:
    """``tokens_BL1``: at most 256 windows, evenly spread; one shorter one in a short split."""
    if len(tokens) < 2:
        return np.zeros((0, 0), dtype=np.int64)
    length = min(context_length, len(tokens) - 1)
    num_windows = (len(tokens) - 1) // length
    chosen = np.unique(
        np.linspace(0, num_windows - 1, min(num_windows, _MAX_VALID_WINDOWS)).astype(np.int64)
    )
    return np.stack([tokens[n * length : (n + 1) * length + 1] for n in chosen]).astype(np.int64)
