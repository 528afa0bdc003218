"""What the model says when it goes on from the beginning of a held-out utterance: sampled units.

Shape legend: B = 1, L tokens, V units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from orchestrator.quantities import SAMPLE_RATE_HZ


def prompt_length(num_tokens: int, num_samples: int, prompt_s: float) -> int:
    """Tokens in the first ``prompt_s`` seconds, at the mean rate; at most half of them."""
    share = min(prompt_s * SAMPLE_RATE_HZ / max(num_samples, 1), 0.5)
    return max(1, round(num_tokens * share))


def choose(num_tokens: np.ndarray, count: int) -> list[int]:
    """The utterances to continue: the longest, for room to compare; ties by order."""
    order = sorted(range(len(num_tokens)), key=lambda n: (-num_tokens[n], n))
    return sorted(order[:count])


@torch.inference_mode()
def continue_units(
    model: Any,
    prompt: Sequence[int],
    *,
    num_tokens: int,
    temperature: float,
    context_length: int,
    seed: int,
) -> list[int]:
    """Sampled units after the prompt; the context never exceeds ``context_length``."""
    generator = torch.Generator().manual_seed(seed)
    units = list(prompt)
    tokens_BL, past = torch.tensor([units[-context_length:]]), None
    for _ in range(num_tokens):
        out = model(input_ids=tokens_BL.to(model.device), past_key_values=past, use_cache=True)
        weights_V = torch.softmax(out.logits[0, -1].double().cpu() / temperature, dim=-1)
        units.append(int(torch.multinomial(weights_V, 1, generator=generator)))
        past = out.past_key_values
        tokens_BL = torch.tensor([units[-1:]])
        if past.get_seq_length() >= context_length:
            # Positions beyond training are meaningless to the model: start again from the newest
            # half of the context.
            past, tokens_BL = None, torch.tensor([units[-(context_length // 2) :]])
    return units[len(prompt) :]
