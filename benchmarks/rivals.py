"""Two other ways to run the training of ``jobs.training.loop``, for ``benchmarks.step_time``.

In: the RankConfig and RankInfo of one of our ranks, and a process group address in the
environment. Out: the loss of each step, noted when the step is over. Model, windows and their
order, optimizer, clipping, learning rate and micro-batches are those of our loop; nothing is saved.

Shape legend: B sequences, L1 = context length + 1 tokens, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from jobs.lm.task import LanguageModel
from jobs.training.batches import stripe
from jobs.training.engine import connect, ds_config, prepare
from jobs.training.rank import RankConfig, RankInfo, end_with
from orchestrator.plan.token_order import TokenOrder

Note = Callable[[float], None]
"""Takes the loss of a step as soon as it was read."""


def plain_loop(config: RankConfig, rank_info: RankInfo, note: Note) -> None:
    """The loop one writes by hand: DistributedDataParallel among several ranks, none for one."""
    task = _start(config, rank_info)
    bare = task.build_model().train()
    model = DistributedDataParallel(bare) if rank_info.world_size > 1 else bare
    adamw = _adamw(bare, config)
    for step, micro_batches in enumerate(_batches(task, config, rank_info), 1):
        for group in adamw.param_groups:
            group["lr"] = task.learning_rate(step)
        losses = []
        for n, tokens_BL1 in enumerate(micro_batches):
            is_alone = rank_info.world_size == 1 or n == len(micro_batches) - 1
            with nullcontext() if is_alone else model.no_sync():
                loss = _loss(model, tokens_BL1)
                (loss / len(micro_batches)).backward()
            losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(bare.parameters(), config.settings.optimizer.grad_clip)
        adamw.step()
        adamw.zero_grad()
        note(float(torch.stack(losses).mean()))
    dist.destroy_process_group()


def trainer_loop(config: RankConfig, rank_info: RankInfo, note: Note) -> None:
    """Hugging Face's Trainer over DeepSpeed with our configuration, logging every step."""
    import deepspeed

    # As in jobs.training.engine: no compilation, and gloo's all-reduce as in the other loops.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    task = _start(config, rank_info)
    _tell_accelerate(rank_info)
    trainer = _trainer(task, config, rank_info, note)
    trainer.train()
    dist.destroy_process_group()


def _tell_accelerate(rank_info: RankInfo) -> None:
    """Make Accelerate take gloo with DeepSpeed, which it knows on accelerators only."""
    from accelerate import PartialState

    os.environ |= {
        "RANK": str(rank_info.rank),
        "WORLD_SIZE": str(rank_info.world_size),
        "LOCAL_RANK": str(rank_info.local_rank),
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_TORCH_DEVICE": "cpu",
    }
    PartialState(backend="gloo")


def _start(config: RankConfig, rank_info: RankInfo) -> LanguageModel:
    end_with(config.driver)
    prepare(config)
    return LanguageModel(config, connect(config, rank_info))


def _adamw(model: torch.nn.Module, config: RankConfig) -> torch.optim.AdamW:
    settings = config.settings.optimizer
    return torch.optim.AdamW(
        model.parameters(),
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def _loss(model: torch.nn.Module, tokens_BL1: torch.Tensor) -> torch.Tensor:
    logits_BLV = model(input_ids=tokens_BL1[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits_BLV.flatten(0, 1), tokens_BL1[:, 1:].flatten())


def _draws(task: LanguageModel, config: RankConfig) -> Iterator[np.ndarray]:
    """The windows of each global batch."""
    settings = config.settings
    order = TokenOrder(task.num_samples, seed=settings.seed)
    for draw in order.batches(settings.steps, settings.global_batch):
        yield draw.windows


def _batches(
    task: LanguageModel, config: RankConfig, rank_info: RankInfo
) -> Iterator[list[torch.Tensor]]:
    """This rank's micro-batches in each step."""
    for windows in _draws(task, config):
        own = stripe(windows, rank=rank_info.rank, world_size=rank_info.world_size)
        (tokens_BL1,) = task.read(own)
        yield list(tokens_BL1.split(config.execution.micro_batch))


class _Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Every window of the training in its order, read when it is asked for."""

    def __init__(self, task: LanguageModel, config: RankConfig) -> None:
        self._task = task
        self._order = np.concatenate(list(_draws(task, config)))

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        ((tokens_L1,),) = self._task.read(self._order[[number]])
        targets_L = tokens_L1[1:]
        # With shift_labels the model's own loss takes the targets as they are.
        return {"input_ids": tokens_L1[:-1], "labels": targets_L, "shift_labels": targets_L}


def _trainer(task: LanguageModel, config: RankConfig, rank_info: RankInfo, note: Note) -> Any:
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    class Ordered(Trainer):
        """Takes the windows as they come, and our learning rate."""

        def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler[int]:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:  # noqa: ARG002
            peak = config.settings.optimizer.lr
            if self.lr_scheduler is None:
                self.lr_scheduler = LambdaLR(
                    optimizer, lambda done: task.learning_rate(done + 1) / peak
                )
            return self.lr_scheduler

    class Noting(TrainerCallback):
        """Passes each step's loss on."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
            if "loss" in logs:
                note(logs["loss"])

    trainer = Ordered(
        model=task.build_model(),
        args=_arguments(config, rank_info),
        train_dataset=_Windows(task, config),
        callbacks=[Noting()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(config: RankConfig, rank_info: RankInfo) -> Any:
    from transformers import TrainingArguments

    train, execution = config.settings, config.execution
    settings = ds_config(train, execution, world_size=rank_info.world_size, device=config.device)
    settings["gradient_clipping"] = train.optimizer.grad_clip  # our loop clips by itself
    return TrainingArguments(
        output_dir=str(Path(config.scratch) / "trainer"),
        deepspeed=settings,
        accelerator_config={"use_configured_state": True},
        max_steps=train.steps,
        per_device_train_batch_size=execution.micro_batch,
        gradient_accumulation_steps=settings["gradient_accumulation_steps"],
        learning_rate=train.optimizer.lr,
        adam_beta1=train.optimizer.betas[0],
        adam_beta2=train.optimizer.betas[1],
        adam_epsilon=train.optimizer.eps,
        weight_decay=train.optimizer.weight_decay,
        max_grad_norm=train.optimizer.grad_clip,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=train.seed,
    )
