"""One training step in the training runtime's own engine, where DeepSpeed is installed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu.device import peak, seconds_of
from benchmarks.gpu.figures import Figure, Setting, SkippedError
from benchmarks.gpu.language_model import unit_model
from benchmarks.gpu.training_step import step_figure, tokens_of
from jobs.lm.objective import next_token_loss

if TYPE_CHECKING:
    from jobs.training.engine import Engine

ROW = "deepspeed"
_NAME = "OPT-125M"


class _NextToken:
    """What the engine asks of a `jobs.training.task.Task`."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def build_model(self) -> Any:
        return unit_model(self._setting, _NAME, dtype=torch.bfloat16)

    def facts(self, model: Any) -> dict[str, Any]:
        return {"num_parameters": model.num_parameters()}

    def flops_per_sample(self, _model: Any) -> float:
        return 0.0  # it is counted elsewhere

    def loss(self, module: Any, micro_batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return next_token_loss(module, *micro_batch)


def figures(setting: Setting) -> Iterator[Figure]:
    """A step in bf16 with ZeRO 1 on one rank, and how long it waits for its checkpoint."""
    try:
        import deepspeed  # noqa: F401
        import pydantic  # noqa: F401
    except ImportError as error:
        raise SkippedError(f"no {error.name}") from error
    with tempfile.TemporaryDirectory() as folder:
        engine = _engine(setting, Path(folder))
        tokens_BL1 = tokens_of(setting)

        def step() -> None:
            engine.accumulate((tokens_BL1,), last=True)
            engine.step()

        took_s = seconds_of(setting, step)
        best, case = peak(setting, torch.bfloat16), f"{_NAME}, bf16, eager, DeepSpeed's ZeRO 1"
        yield step_figure(case, took_s, engine.model, tokens_BL1, best)
        saved_s = seconds_of(setting, lambda: engine.save(Path(folder), "state"), repeats=3)
        yield Figure(row=ROW, case=f"{_NAME}, checkpoint on disk", value=saved_s, unit="s")
    torch.distributed.destroy_process_group()


def _engine(setting: Setting, folder: Path) -> Engine:
    from jobs.training.engine import build_engine, connect, prepare
    from jobs.training.rank import RankConfig, RankInfo, TrainingSettings
    from orchestrator.ledger.lease import Process
    from orchestrator.spec.recipe import Checkpoint, Execution, Optimizer

    num_sequences = len(tokens_of(setting))
    config = RankConfig(
        task="",
        spec={},
        settings=TrainingSettings(
            steps=1,
            global_batch=num_sequences,
            seed=0,
            optimizer=Optimizer(),
            precision="bf16",
            checkpoint=Checkpoint(every_steps=1),
            validate_every_steps=1,
        ),
        execution=Execution(zero_stage=1, micro_batch=num_sequences),
        out_url=str(folder),
        lease_n=1,
        folder=str(folder),
        record_url=str(folder),
        scratch=str(folder),
        tracker="gpu",
        device=setting.device,
        driver=Process.current(),
    )
    prepare(config)
    rank_info = RankInfo(rank=0, world_size=1, local_rank=0, local_world_size=1)
    connect(config, rank_info)
    return build_engine(_NextToken(setting), config, rank_info, universal=False)  # type: ignore[arg-type]
