from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    OpenAIGPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from jobs import continuations, perplexity
from jobs.continuations import choose, continue_units, prompt_length
from tests.unit.jobs.test_targets import attempt_of
from tests.unit.orchestrator.recipes import recipe


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=6,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval()


def say(model: PreTrainedModel, num_tokens: int = 20, **options: float) -> list[int]:
    settings = {"temperature": 1.0, "context_length": 64, "seed": 0, **options}
    return continue_units(model, [1, 2, 3], num_tokens=num_tokens, **settings)  # type: ignore[arg-type]


def test_the_seed_decides(model: LlamaForCausalLM) -> None:
    assert len(say(model)) == 20
    assert say(model) == say(model)
    assert say(model) != say(model, seed=1)


@torch.no_grad()
def test_cold_sampling_is_greedy_decoding(model: LlamaForCausalLM) -> None:
    units = [1, 2, 3]
    for _ in range(8):
        units.append(int(model(input_ids=torch.tensor([units])).logits[0, -1].argmax()))
    assert say(model, num_tokens=8, temperature=1e-4) == units[3:]


def test_it_goes_on_past_the_context(model: LlamaForCausalLM) -> None:
    longest = 0

    class Watched(torch.nn.Module):
        device = model.device

        def forward(
            self, input_ids: torch.Tensor, use_cache: bool, past_key_values: object = None
        ) -> object:
            nonlocal longest
            out = model(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)
            longest = max(longest, out.past_key_values.get_seq_length())
            return out

    assert len(say(Watched(), num_tokens=50, context_length=16)) == 50
    assert longest == 16


@pytest.mark.parametrize(
    "config",
    [
        MambaConfig(vocab_size=6, hidden_size=16, state_size=4, num_hidden_layers=1),
        OpenAIGPTConfig(vocab_size=6, n_embd=16, n_layer=1, n_head=2, n_positions=16),
    ],
    ids=lambda config: config.model_type,
)
@torch.no_grad()
def test_models_without_a_cache_see_the_whole_context(config: PreTrainedConfig) -> None:
    torch.manual_seed(0)
    without = AutoModelForCausalLM.from_config(config).eval()
    units = [1, 2, 3]
    for _ in range(8):
        units.append(int(without(input_ids=torch.tensor([units])).logits[0, -1].argmax()))
    assert say(without, num_tokens=8, temperature=1e-4) == units[3:]
    assert len(say(without, num_tokens=30, context_length=16)) == 30


@pytest.mark.parametrize(
    ("num_tokens", "seconds", "expected"),
    [(100, 10.0, 30), (100, 6.0, 50), (100, 2.0, 50), (1, 1.0, 1)],
)
def test_prompts_are_seconds_long_but_leave_half(
    num_tokens: int, seconds: float, expected: int
) -> None:
    assert prompt_length(num_tokens, int(seconds * 16_000), 3.0) == expected


def test_the_longest_are_continued() -> None:
    assert choose(np.array([3, 9, 5, 9, 1]), 3) == [1, 2, 3]
    assert choose(np.array([3]), 4) == [0]
    assert choose(np.array([3]), 0) == []


@pytest.mark.parametrize("stage", [continuations, perplexity])
def test_a_score_that_the_recipe_does_not_ask_for_is_not_made_up(
    tmp_path: Path, stage: ModuleType
) -> None:
    asked = recipe()
    none = asked.model_copy(
        update={
            "evaluate": asked.evaluate.model_copy(
                update={"continuations": None, "perplexity": None}
            )
        }
    )
    with pytest.raises(AssertionError, match="only a recipe that asks for the score"):
        stage.work(attempt_of(tmp_path, none))
