"""The loss and the work of a language model."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from jobs.lm.objective import flops_per_token, next_token_loss


def _llama(*, tied: bool = True) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=10,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("tied", [True, False])
def test_flops_of_a_llama(tied: bool) -> None:
    # Attention 4 x 8 x 8, MLP 3 x 8 x 16, two norms of 8 a layer; last norm; the head.
    parameters = 2 * (256 + 384 + 16) + 8 + 80
    assert flops_per_token(_llama(tied=tied), context_length=32) == 6 * parameters + 12 * 2 * 8 * 32


def test_the_loss_is_that_of_each_next_token() -> None:
    torch.manual_seed(0)
    model, tokens_BL1 = _llama(), torch.randint(10, (3, 7))
    theirs = model(input_ids=tokens_BL1, labels=tokens_BL1).loss
    torch.testing.assert_close(next_token_loss(model, tokens_BL1), theirs)
