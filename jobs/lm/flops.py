"""The arithmetic that training a language model needs.

A token costs ``6 N + 12 L H Q T`` FLOPs, forward and backward (PaLM, arXiv 2204.02311, appendix B):
N parameters but for an embedding table that is not the head's too, L layers, H heads of Q features,
T tokens of context.
"""

from __future__ import annotations

from typing import Any


def flops_per_token(model: Any, context_length: int) -> float:
    """FLOPs of one token's forward and backward pass."""
    config = model.config
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    parameters = model.num_parameters() - (0 if head is table else table.numel())
    attention = config.num_hidden_layers * config.hidden_size * context_length
    return float(6 * parameters + 12 * attention)
