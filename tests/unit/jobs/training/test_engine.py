from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.training.engine import ds_config
from jobs.training.rank import TrainingSettings
from orchestrator.spec.recipe import Execution

GOLDEN = Path(__file__).parents[3] / "golden"
TRAIN = TrainingSettings(steps=10, global_batch=32, seed=0, precision="fp32")
GPU_TRAIN = TrainingSettings(steps=10, global_batch=256, seed=0)

CASES = {
    "cpu_fp32": (TRAIN, Execution(zero_stage=0, micro_batch=4), 2, "cpu"),
    "gpu_bf16_zero2_offload": (
        GPU_TRAIN,
        Execution(zero_stage=2, micro_batch=8, offload=True),
        16,
        "cuda",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    train, execution, world_size, device = CASES[name]
    config = ds_config(train, execution, world_size=world_size, device=device)
    assert json.dumps(config, indent=1) + "\n" == (GOLDEN / f"ds_config_{name}.json").read_text()


def test_batch_sizes_multiply_to_the_global_batch() -> None:
    for world_size in (1, 2, 4, 8):
        config = ds_config(TRAIN, Execution(micro_batch=2), world_size=world_size, device="cpu")
        product = (
            config["train_micro_batch_size_per_gpu"]
            * config["gradient_accumulation_steps"]
            * world_size
        )
        assert product == config["train_batch_size"] == 32


@pytest.mark.parametrize(("zero_stage", "clipping"), [(0, 0.0), (1, 1.0)])
def test_somebody_clips_exactly_once(zero_stage: int, clipping: float) -> None:
    execution = Execution(zero_stage=zero_stage, micro_batch=4)
    assert ds_config(TRAIN, execution, world_size=2, device="cpu")["gradient_clipping"] == clipping
