"""Model FLOPs utilisation: the arithmetic a training needs over what its devices could do.

A token costs ``6 N + 12 L H Q T`` FLOPs, forward and backward (PaLM, arXiv 2204.02311, appendix B):
N parameters but for an embedding table that is not the head's too, L layers, H heads of Q features,
T tokens of context. Recomputed activations do not count, so that MFU compares trainings.
"""

from __future__ import annotations

from typing import Any

PEAK_FLOPS = {
    "V100": 125e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L4": 121e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}
"""Dense bf16 (V100: fp16) FLOPs per second by what the device's name contains: the makers' data
sheets."""


def flops_per_token(model: Any, context_length: int) -> float:
    """FLOPs of one token's forward and backward pass."""
    config = model.config
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    parameters = model.num_parameters() - (0 if head is table else table.numel())
    return 6.0 * parameters + 12.0 * config.num_hidden_layers * config.hidden_size * context_length


def peak_flops(device_name: str) -> float | None:
    """What a device can do at best; None when it is not in the table."""
    found = (peak for name, peak in PEAK_FLOPS.items() if name in device_name)
    return next(found, None)
