"""The DeepSpeed engine of one rank: its configuration, its process group, what it does."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jobs.training.group import RankGroup
from jobs.training.rank import RankConfig, RankInfo, free_port
from jobs.training.task import MicroBatch, Task
from orchestrator.errors import CorruptError

_NEVER = 1_000_000_000


def ds_config(config: RankConfig, world_size: int, *, universal: bool = False) -> dict[str, Any]:
    """DeepSpeed's configuration; a pure function, so that tests can compare it as text.

    The learning rate is set before each step by ours, so the one here is only the peak.
    ``torch_adam``: DeepSpeed's own Adam would be compiled at start (70 s). Without ZeRO in fp32 we
    clip ourselves, because DeepSpeed would not say the norm.
    """
    training, execution, is_on_gpu = config.settings, config.execution, config.device == "cuda"
    optimizer, zero_stage = training.optimizer, execution.zero_stage
    zero: dict[str, Any] = {"stage": zero_stage, "overlap_comm": is_on_gpu and zero_stage > 0}
    if execution.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": is_on_gpu}
    return {
        "train_batch_size": training.global_batch,
        "train_micro_batch_size_per_gpu": execution.micro_batch,
        "gradient_accumulation_steps": training.global_batch // world_size // execution.micro_batch,
        "gradient_clipping": 0.0 if clips_itself(config) else optimizer.grad_clip,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": optimizer.lr,
                "betas": list(optimizer.betas),
                "eps": optimizer.eps,
                "weight_decay": optimizer.weight_decay,
                "torch_adam": True,
                "fused": not execution.offload,
            },
        },
        "bf16": {"enabled": training.precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "checkpoint": {"load_universal": universal},
        "steps_per_print": _NEVER,
    }


def clips_itself(config: RankConfig) -> bool:
    """Whether the engine clips gradients rather than DeepSpeed."""
    return config.execution.zero_stage == 0 and config.settings.precision == "fp32"


def prepare(config: RankConfig) -> None:
    """Settings that must precede the import of DeepSpeed and the first operation of torch."""
    if config.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    # cuBLAS is deterministic only with it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(config.threads)
    if config.device == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(config.settings.seed)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def connect(config: RankConfig, rank_info: RankInfo) -> RankGroup:
    """Join the other ranks, at the address in the environment."""
    if config.device == "cuda":
        torch.cuda.set_device(rank_info.local_rank % torch.cuda.device_count())
    timeout = timedelta(seconds=config.wait_s)
    if not dist.is_initialized():
        if rank_info.world_size == 1:
            os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(free_port())
        dist.init_process_group(
            "nccl" if config.device == "cuda" else "gloo",
            rank=rank_info.rank,
            world_size=rank_info.world_size,
            timeout=timeout,
        )
    if config.device != "cuda":
        return RankGroup(rank_info, dist.group.WORLD)
    return RankGroup(rank_info, dist.new_group(backend="gloo", timeout=timeout))


@dataclass
class Engine:
    """One rank's share of the model and of the optimizer."""

    task: Task
    config: RankConfig
    deepspeed: Any
    """The DeepSpeedEngine."""
    facts: dict[str, Any]
    """What the task says of the model and its data."""
    flops_per_sample: float
    """Of a forward and backward pass."""

    @property
    def model(self) -> Any:
        """The bare model."""
        return self.deepspeed.module

    def set_lr(self, lr: float) -> None:
        """Use this learning rate from the next step on."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr

    def loss(self, micro_batch: MicroBatch) -> torch.Tensor:
        """The task's mean loss of a micro-batch, which is brought to the device."""
        device = self.deepspeed.device
        on_device = tuple(tensor.to(device, non_blocking=True) for tensor in micro_batch)
        return self.task.loss(self.deepspeed, on_device)

    def accumulate(
        self, micro_batch: MicroBatch, *, last: bool, poisoned: bool = False
    ) -> torch.Tensor:
        """Forward and backward of a micro-batch, the last one over all ranks; returns the loss.

        ``poisoned`` makes it NaN, for drills.
        """
        self.deepspeed.set_gradient_accumulation_boundary(last)
        loss = self.loss(micro_batch)
        if poisoned:
            loss = loss * math.nan
        self.deepspeed.backward(loss)
        if not last:
            self.deepspeed.step()
        return loss.detach().double()

    def step(self) -> float:
        """Clip and apply the accumulated gradients; returns their global norm before clipping.

        A norm that is not finite applies nothing: ZeRO drops such gradients by itself.
        """
        if clips_itself(self.config):
            grad_clip = self.config.settings.optimizer.grad_clip
            norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), grad_clip))
            if math.isfinite(norm):
                self.deepspeed.step()
            else:
                self.deepspeed.zero_grad()
            return norm
        self.deepspeed.step()
        return float(self.deepspeed.get_global_grad_norm())

    def save(self, folder: Path, name: str) -> None:
        """Write this rank's part of the state below ``folder/name``; a collective call."""
        self.deepspeed.save_checkpoint(str(folder), tag=name, save_latest=False)

    def load(self, folder: Path, name: str) -> None:
        """Take up the state below ``folder/name``; a collective call. Raises CorruptError."""
        found, _ = self.deepspeed.load_checkpoint(
            str(folder), tag=name, load_lr_scheduler_states=False
        )
        if found is None:
            raise CorruptError(f"{folder / name}: DeepSpeed found nothing to load; remove it")

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The whole model on the CPU, on rank 0 alone where ZeRO 3 has spread it; collective."""
        if self.config.execution.zero_stage < 3:
            return {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}
        import deepspeed

        gathered = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            with deepspeed.zero.GatheredParameters([parameter]):
                if dist.get_rank() == 0:
                    gathered[name] = parameter.detach().cpu().clone()
        return gathered


def build_engine(task: Task, config: RankConfig, rank_info: RankInfo, *, universal: bool) -> Engine:
    """The initial model inside a DeepSpeed engine.

    With ZeRO 3 rank 0 alone holds it whole, on its host, until each weight is shared out.
    """
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # DeepSpeed would compile a shared-memory all-reduce at start (40 s, and a killed build leaves a
    # lock that blocks the next). Its ranks also spin for ever when a peer dies, where gloo's
    # sockets break.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed reads it, whatever the launcher.
    os.environ["LOCAL_RANK"] = str(rank_info.local_rank)
    settings = ds_config(config, rank_info.world_size, universal=universal)
    is_shared_out = config.execution.zero_stage == 3
    model = task.build_shell() if is_shared_out and rank_info.rank else task.build_model()
    # While the parameters are whole: ZeRO 3 will leave nothing of them here.
    facts, flops_per_sample = task.facts(model), task.flops_per_sample(model)
    if is_shared_out:
        deepspeed.init_distributed(dist_init_required=False)
        deepspeed.zero.Init(module=model, config_dict_or_path=settings)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=list(model.parameters()),
        config=settings,
        dist_init_required=False,
    )
    if config.execution.compile and config.device == "cuda":
        engine.compile()
    return Engine(task, config, engine, facts, flops_per_sample)


def to_universal(folder: Path, target: Path) -> None:
    """Convert a ZeRO checkpoint, by DeepSpeed's own tool, for another number of ranks."""
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--inject_missing_state", "--num_extract_workers", "1", "--num_merge_workers", "1"]
    command += ["--input_folder", str(folder), "--output_folder", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{folder}: cannot be converted for another world size\n{done.stderr[-2000:]}"
        )
