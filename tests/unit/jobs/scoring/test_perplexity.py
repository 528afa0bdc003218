from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from jobs.scoring.likelihood import windows_of
from jobs.scoring.perplexity import (
    MAX_BIGRAM_UNITS,
    Scored,
    count,
    score_counts,
    score_model,
    summary,
)

NUM_UNITS = 6


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=NUM_UNITS,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    return LlamaForCausalLM(config).eval()


def utterances(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, NUM_UNITS, n).astype("<u2") for n in lengths]


def samples(said: list[np.ndarray]) -> np.ndarray:
    return np.array([640 * len(units) for units in said])


def one_by_one(model: LlamaForCausalLM, units: np.ndarray) -> float:
    """The definition, without windows, padding, batches: sum of -log p(u_t | u_0 .. u_t-1)."""
    tokens_BL = torch.from_numpy(units.astype(np.int64))[None]
    log_p = torch.log_softmax(model(input_ids=tokens_BL).logits[0].double(), -1)
    return -sum(float(log_p[t - 1, units[t]]) for t in range(1, len(units)))


@torch.no_grad()
def test_batches_and_padding_change_nothing(model: LlamaForCausalLM) -> None:
    said = utterances(5, 17, 2, 9, 1, 30)
    scored = score_model(model, said, context_length=64, num_samples=samples(said))
    assert scored.nll == pytest.approx([one_by_one(model, units) for units in said], abs=1e-4)
    assert scored.num_scored.tolist() == [4, 16, 1, 8, 0, 29]


@torch.no_grad()
def test_long_utterances_keep_half_a_context(model: LlamaForCausalLM) -> None:
    said, context_length = utterances(40), 8
    scored = score_model(model, said, context_length=context_length, num_samples=samples(said))
    expected, units = 0.0, said[0].astype(np.int64)
    for start, end, first in windows_of(40, context_length):
        log_p = torch.log_softmax(
            model(input_ids=torch.from_numpy(units[start:end])[None]).logits[0].double(), -1
        )
        expected -= sum(float(log_p[t - 1 - start, units[t]]) for t in range(first, end))
    assert scored.nll[0] == pytest.approx(expected, abs=1e-4)
    assert scored.num_scored[0] == 39


def test_progress_is_told(model: LlamaForCausalLM) -> None:
    said, told = utterances(5, 6, 7), []
    score_model(model, said, context_length=64, num_samples=samples(said), tick=told.append)
    assert told[-1] == 3


def test_counts() -> None:
    counts = count(np.array([0, 1, 1, 2, 0], dtype="<u2"), 3)
    assert counts["unigram"].tolist() == [2, 2, 1]
    assert counts["bigram"].tolist() == [[0, 1, 0], [0, 1, 1], [1, 0, 0]]


def test_counts_across_chunks() -> None:
    tokens = np.random.default_rng(0).integers(0, 3, (1 << 22) + 100).astype("<u2")
    counts = count(tokens, 3)
    assert counts["unigram"].sum() == len(tokens)
    assert counts["bigram"].sum() == len(tokens) - 1
    assert counts["bigram"][0, 1] == int(((tokens[:-1] == 0) & (tokens[1:] == 1)).sum())


def test_baselines_by_hand() -> None:
    counts = count(np.array([0, 1, 1, 2, 0], dtype="<u2"), 3)
    said = [np.array([0, 1, 2], dtype="<u2")]
    unigram = score_counts(counts["unigram"], said, num_samples=np.array([16_000]))
    assert unigram.nll[0] == pytest.approx(-math.log(3 / 8) - math.log(2 / 8))
    assert unigram.nats_per_s == pytest.approx(unigram.nll[0])
    bigram = score_counts(counts["bigram"], said, num_samples=np.array([16_000]))
    assert bigram.nll[0] == pytest.approx(-math.log(2 / 4) - math.log(2 / 5))


def test_no_bigram_table_for_a_huge_codebook() -> None:
    counts = count(np.array([0, 1], dtype="<u2"), MAX_BIGRAM_UNITS + 1)
    assert counts.keys() == {"unigram"}


def test_a_uniform_model_has_the_perplexity_of_its_codebook() -> None:
    said = utterances(10, 20)
    counts = count(np.zeros(0, dtype="<u2"), NUM_UNITS)
    scored = score_counts(counts["unigram"], said, num_samples=samples(said))
    assert scored.perplexity == pytest.approx(NUM_UNITS)
    assert scored.nats_per_s == pytest.approx(math.log(NUM_UNITS) * 28 / (640 * 30 / 16_000))


def test_intervals_hold_the_estimate_and_follow_the_seed() -> None:
    rng = np.random.default_rng(0)
    scored = Scored(
        nll=rng.normal(40, 8, 200), num_scored=np.full(200, 20), num_samples=np.full(200, 16_000)
    )
    first, again, other = (summary(scored, bootstrap_samples=500, seed=seed) for seed in (0, 0, 1))
    low, high = first["perplexity_95"]
    assert low < first["perplexity"] < high
    # Mean of 200 draws of std 8/20: half width 1.96 * 0.4 / sqrt(200) = 0.055 nats.
    assert math.log(high / low) / 2 == pytest.approx(0.055, rel=0.2)
    assert first == again != other
