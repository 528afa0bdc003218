"""One training step in plain torch: tokens a second and MFU, compiled and not.

Weights and gradients are bf16; AdamW's state and the weights that it adds to are fp32, as
DeepSpeed keeps them.

Shape legend: B sequences, L1 = context length + 1 tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.device import Peak, peak, seconds_of
from benchmarks.gpu.figures import Figure, Setting
from benchmarks.gpu.language_model import NUM_UNITS, unit_model
from jobs.lm.objective import flops_per_token, next_token_loss

_MAX_NORM = 1.0


class MixedAdamW:
    """AdamW in fp32 over a model in bf16."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._weights = list(model.parameters())
        self.exact = [weight.detach().float() for weight in self._weights]
        self.adamw = torch.optim.AdamW(self.exact, lr=1e-4, fused=True)

    def step(self) -> None:
        """Apply the gradients, and let go of them."""
        for exact, weight in zip(self.exact, self._weights, strict=True):
            exact.grad = None if weight.grad is None else weight.grad.float()
        torch.nn.utils.clip_grad_norm_(self.exact, _MAX_NORM)
        self.adamw.step()
        with torch.no_grad():
            torch._foreach_copy_(self._weights, self.exact)
        for weight in self._weights:
            weight.grad = None


def figures_125m(setting: Setting) -> Iterator[Figure]:
    """Of the shape of OPT 125M."""
    yield from _figures(setting, "OPT-125M")


def figures_350m(setting: Setting) -> Iterator[Figure]:
    """Of the shape of OPT 350M."""
    yield from _figures(setting, "OPT-350M")


def tokens_of(setting: Setting) -> Tensor:
    """``tokens_BL1`` of a micro-batch, 16,384 tokens but for the tiny ones."""
    torch.manual_seed(0)
    shape = setting.sized((8, 2049), (2, 33))
    return torch.randint(NUM_UNITS, shape, device=setting.torch_device)


def _figures(setting: Setting, name: str) -> Iterator[Figure]:
    best = peak(setting, torch.bfloat16)
    model = unit_model(setting, name, dtype=torch.bfloat16).to(setting.torch_device).train()
    optimizer, tokens_BL1 = MixedAdamW(model), tokens_of(setting)
    timed = partial(_timed, setting, name, model, optimizer, tokens_BL1, best)
    yield timed("eager", model)
    # Where there is no GPU, there may be no compiler either: traced and differentiated, then run.
    backend = "inductor" if setting.device == "cuda" else "aot_eager"
    yield timed(f"compiled by {backend}", torch.compile(model, backend=backend))


def _timed(
    setting: Setting,
    name: str,
    model: Any,
    optimizer: MixedAdamW,
    tokens_BL1: Tensor,
    best: Peak,
    way: str,
    module: Any,
) -> Figure:
    def step() -> None:
        next_token_loss(module, tokens_BL1).backward()
        optimizer.step()

    took_s = seconds_of(setting, step)
    return step_figure(f"{name}, bf16, {way}", took_s, model, tokens_BL1, best)


def step_figure(case: str, took_s: float, model: Any, tokens_BL1: Tensor, best: Peak) -> Figure:
    """Of a step over a micro-batch."""
    num_tokens = tokens_BL1[:, 1:].numel()
    work = num_tokens * flops_per_token(model, tokens_BL1.shape[1] - 1)
    return Figure(
        row="training step",
        case=case,
        value=num_tokens / took_s,
        unit="tokens/s",
        share=work / took_s / best.flops_per_s,
        peak=f"MFU: {best.name}",
        note=f"{num_tokens} tokens, {took_s:.3g} s a step",
    )
