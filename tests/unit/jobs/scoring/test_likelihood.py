"""Batched log-probabilities against the definition: one sequence at a time, nothing padded."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
)

from jobs.scoring.likelihood import (
    Likelihood,
    log_probs,
    pieces_of,
    plan_batches,
    summed,
    windows_of,
)

NUM_UNITS = 12
OPT = {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LIKE_LLAMA = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "opt": OPTConfig(vocab_size=NUM_UNITS, word_embed_proj_dim=16, **OPT),
    "opt-350m": OPTConfig(
        vocab_size=NUM_UNITS, word_embed_proj_dim=8, do_layer_norm_before=False, **OPT
    ),
    "llama": LlamaConfig(vocab_size=NUM_UNITS, **LIKE_LLAMA),
    "gpt-neox": GPTNeoXConfig(vocab_size=NUM_UNITS, **LIKE_LLAMA),
    "bloom": BloomConfig(vocab_size=NUM_UNITS, hidden_size=16, n_layer=2, n_head=2),
}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    built = AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()
    with torch.no_grad():
        for parameter in built.parameters():  # enough for probabilities that are far from alike
            parameter.add_(0.3 * torch.randn_like(parameter))
    return built


def sequences(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, NUM_UNITS, length).astype(np.uint16) for length in lengths]


@torch.no_grad()
def log_prob_by_definition(model: torch.nn.Module, tokens: np.ndarray, start: int = 1) -> float:
    """Sum of log p(token | all before it), each from a pass over what is before it alone."""
    total = 0.0
    for at in range(start, len(tokens)):
        before_BL = torch.from_numpy(tokens[:at].astype(np.int64))[None]
        logits_V = model(input_ids=before_BL, use_cache=False).logits[0, -1].double()
        total += float(torch.log_softmax(logits_V, -1)[int(tokens[at])])
    return total


def scored(
    model: torch.nn.Module, said: list[np.ndarray], context_length: int | None
) -> np.ndarray:
    batches = plan_batches([len(one) for one in said], context_length)
    values = {n: log_probs(model, pieces_of(said, batch)) for n, batch in enumerate(batches)}
    return summed(len(said), values, batches)


def test_batches_give_what_one_at_a_time_does(model: torch.nn.Module) -> None:
    said = sequences(3, 30, 2, 17, 9, 9, 24)
    expected = np.array([log_prob_by_definition(model, one) for one in said])
    num_scored = np.array([len(one) - 1 for one in said])
    assert np.ptp(expected / num_scored) > 0.5, "a model to which all is alike shows nothing"
    found = scored(model, said, 64)
    assert found / num_scored == pytest.approx(expected / num_scored, abs=1e-5)


def test_long_sequences_are_scored_with_half_a_context_at_least(model: torch.nn.Module) -> None:
    (said,) = sequences(21)
    # By hand: 8 tokens are read at once, and each window after the first begins 4 further on.
    expected = log_prob_by_definition(model, said[:9])
    for start, end in ((4, 13), (8, 17), (12, 21)):
        expected += log_prob_by_definition(model, said[start:end], start=5)
    (found,) = scored(model, [said], 8)
    assert found / 20 == pytest.approx(expected / 20, abs=1e-5)


def test_which_batch_is_done_first_changes_nothing(model: torch.nn.Module) -> None:
    said = sequences(300, 40, 301, 39, 5)
    batches = plan_batches([len(one) for one in said], 32)
    values = {n: log_probs(model, pieces_of(said, batch)) for n, batch in enumerate(batches)}
    backwards = dict(reversed(values.items()))
    assert summed(5, values, batches).tolist() == summed(5, backwards, batches).tolist()


def test_batches_are_bounded_and_of_like_lengths() -> None:
    lengths = [int(n) for n in np.random.default_rng(1).integers(2, 200, 500)]
    batches = plan_batches(lengths, 128)
    assert len(batches) > 5
    for batch in batches:
        assert max(w.length for w in batch) * len(batch) <= 4096
    longest = [max(w.length for w in batch) for batch in batches]
    assert longest == sorted(longest)
    tokens = sorted((w.sequence, t) for b in batches for w in b for t in range(w.first, w.end))
    assert tokens == [(n, t) for n, length in enumerate(lengths) for t in range(1, length)]


@pytest.mark.parametrize("num_tokens", [0, 1, 2, 8, 9, 10, 13, 40, 41])
def test_windows_score_every_token_once(num_tokens: int) -> None:
    windows = list(windows_of(num_tokens, 8))
    scored = [t for _, end, first in windows for t in range(first, end)]
    assert scored == list(range(1, num_tokens))
    assert all(end - start <= 9 for start, end, _ in windows)
    assert all(first - start > 4 for start, _, first in windows[1:]), "too little context"


def test_without_a_limit_there_is_one_window() -> None:
    assert list(windows_of(100_000, None)) == [(0, 100_000, 1)]


def test_means_are_by_token_and_by_second() -> None:
    said = Likelihood(log_prob=-12.0, num_scored=8, num_samples=32_000)
    assert (said.per_token, said.per_s) == (-1.5, -6.0)
    nothing = Likelihood(log_prob=0.0, num_scored=0, num_samples=0)
    assert math.isnan(nothing.per_token)
    assert math.isnan(nothing.per_s)
