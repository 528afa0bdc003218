"""How long a training step waits for a checkpoint: weights, AdamW's state and fp32 weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu.device import seconds_of
from benchmarks.gpu.figures import Figure, Setting
from benchmarks.gpu.language_model import unit_model
from benchmarks.gpu.training_step import MixedAdamW, tokens_of
from jobs.lm.objective import next_token_loss
from orchestrator.quantities import format_bytes

ROW = "checkpoint"
_NAME = "OPT-125M"


def figures(setting: Setting) -> Iterator[Figure]:
    """The copy to pinned host memory, and the file that the training runtime waits for."""
    state = _state(setting)
    note = f"{_NAME}, {format_bytes(sum(t.nbytes for t in state))}"
    host = [torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda) for t in state]

    def copy() -> None:
        for here, there in zip(host, state, strict=True):
            here.copy_(there, non_blocking=True)

    for case, work in (("copied to host memory", copy), ("written to a file", None)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state.pt"
            took_s = seconds_of(setting, work or (lambda p=path: torch.save(state, p)), repeats=3)
        yield Figure(row=ROW, case=case, value=took_s, unit="s", note=note)


def _state(setting: Setting) -> list[Tensor]:
    """After one step, so that all of it is there."""
    model = unit_model(setting, _NAME, dtype=torch.bfloat16).to(setting.torch_device)
    optimizer = MixedAdamW(model)
    next_token_loss(model, tokens_of(setting)[:1]).backward()
    optimizer.step()
    moments = [
        moment
        for of_weight in optimizer.adamw.state.values()
        for moment in of_weight.values()
        if isinstance(moment, Tensor)
    ]
    return [*(p.detach() for p in model.parameters()), *optimizer.exact, *moments]
