from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.training.engine import ds_config
from jobs.training.rank import RankConfig, TrainingSettings
from orchestrator.ledger.lease import Process
from orchestrator.spec.recipe import Execution

GOLDEN = Path(__file__).parents[3] / "golden"
TRAIN = TrainingSettings(steps=10, global_batch=32, seed=0, precision="fp32")
GPU_TRAIN = TrainingSettings(steps=10, global_batch=256, seed=0)


def config(execution: Execution, settings: TrainingSettings = TRAIN, **more: Any) -> RankConfig:
    return RankConfig(
        task="",
        spec={},
        settings=settings,
        execution=execution,
        out_url="",
        lease_n=1,
        folder="",
        record_url="",
        scratch="",
        tracker="",
        driver=Process.current(),
        **more,
    )


CASES = {
    "cpu_fp32": (config(Execution(zero_stage=0, micro_batch=4)), 2),
    "gpu_bf16_zero2_offload": (
        config(Execution(zero_stage=2, micro_batch=8, offload=True), GPU_TRAIN, device="cuda"),
        16,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    text = json.dumps(ds_config(*CASES[name]), indent=1) + "\n"
    assert text == (GOLDEN / f"ds_config_{name}.json").read_text()


def test_batch_sizes_multiply_to_the_global_batch() -> None:
    for world_size in (1, 2, 4, 8):
        found = ds_config(config(Execution(micro_batch=2)), world_size)
        product = (
            found["train_micro_batch_size_per_gpu"]
            * found["gradient_accumulation_steps"]
            * world_size
        )
        assert product == found["train_batch_size"] == 32


@pytest.mark.parametrize(("zero_stage", "clipping"), [(0, 0.0), (1, 1.0)])
def test_somebody_clips_exactly_once(zero_stage: int, clipping: float) -> None:
    asked = config(Execution(zero_stage=zero_stage, micro_batch=4))
    assert ds_config(asked, 2)["gradient_clipping"] == clipping
