"""What a language model is trained to do, and how much work that is.

Shape legend: B sequences, L1 = context length + 1 tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


def next_token_loss(module: nn.Module, tokens_BL1: torch.Tensor) -> torch.Tensor:
    """Mean NLL in nats over all targets of some windows."""
    logits_BLV = module(input_ids=tokens_BL1[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits_BLV.flatten(0, 1).float(), tokens_BL1[:, 1:].flatten())


def flops_per_token(model: Any, context_length: int) -> float:
    """FLOPs of one token's forward and backward pass.

    ``6 N + 12 L H Q T`` (PaLM, arXiv 2204.02311, appendix B): N parameters but for an embedding
    table that is not the head's too, L layers, H heads of Q features, T tokens of context.
    """
    config = model.config
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    parameters = model.num_parameters() - (0 if head is table else table.numel())
    attention = config.num_hidden_layers * config.hidden_size * context_length
    return float(6 * parameters + 12 * attention)
