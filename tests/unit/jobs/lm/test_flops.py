from __future__ import annotations

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from jobs.lm.flops import flops_per_token


@pytest.mark.parametrize("tied", [True, False])
def test_flops_of_a_llama(tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=10,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config)
    # Attention 4 x 8 x 8, MLP 3 x 8 x 16, two norms of 8 a layer; last norm; the head.
    parameters = 2 * (256 + 384 + 16) + 8 + 80
    assert flops_per_token(model, context_length=32) == 6 * parameters + 12 * 2 * 8 * 32
