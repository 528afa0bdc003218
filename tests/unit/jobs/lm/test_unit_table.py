"""Rows of the units' table: drawn, the text tokens' mean, some of theirs, the nearest of theirs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jobs.lm.unit_table import (
    NUM_STRETCHES,
    WINDOW,
    cooccurrences,
    nearest_tokens,
    unit_rows,
)
from orchestrator.errors import RequestError

V, D, K = 40, 16, 20


def text_table(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn((V, D), generator=torch.Generator().manual_seed(5)).to(dtype)


def rows(kind: str, num_units: int = K, seed: int = 0) -> torch.Tensor:
    table_VD, generator = text_table(), torch.Generator().manual_seed(seed)
    return unit_rows(kind, table_VD, num_units, 0.02, generator)(table_VD)


def test_the_mean_is_of_all_text_tokens() -> None:
    assert torch.equal(rows("text_mean"), text_table().double().mean(0).float().expand(K, -1))


def test_a_sample_is_of_tokens_that_the_seed_decides() -> None:
    one, again, other = (rows("text_sample", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert len({tuple(row.tolist()) for row in one}) == K
    assert {tuple(row.tolist()) for row in one} <= {tuple(r.tolist()) for r in text_table()}


@pytest.mark.parametrize("kind", ["random", "text_mean", "text_sample", "text_nearest"])
def test_rows_are_in_the_precision_of_the_text_model(kind: str) -> None:
    table_VD, tokens = text_table(torch.bfloat16), np.arange(K, dtype=np.uint16)
    made_KD = unit_rows(kind, table_VD, K, 0.02, torch.Generator(), tokens)(table_VD)
    assert made_KD.dtype == torch.bfloat16
    assert made_KD.shape == (K, D)
    made_KD.add_(1)  # of its own, no view of the text model's
    assert torch.equal(table_VD, text_table(torch.bfloat16))


@pytest.mark.parametrize("kind", ["text_sample", "text_nearest"])
def test_fewer_text_tokens_than_units(kind: str) -> None:
    with pytest.raises(RequestError, match="has 40 tokens, fewer than the 41 units"):
        rows(kind, V + 1)
    assert len(rows("text_mean", V + 1)) == V + 1


def test_pairs_are_counted_on_both_sides_up_to_the_window() -> None:
    tokens = np.array([0, 1, 2, 3, 4, 5], dtype=np.uint16)
    counts_KK = cooccurrences(tokens, 6)
    assert (counts_KK == counts_KK.T).all()
    expected = [[float(0 < abs(i - j) <= WINDOW) for j in range(6)] for i in range(6)]
    assert counts_KK.tolist() == expected
    assert cooccurrences(tokens[:1], 6).sum() == 0


def test_of_many_tokens_stretches_of_all_are_counted() -> None:
    tokens = np.repeat(np.arange(4, dtype=np.uint16), 10_000)  # four speakers, a unit each
    counts_KK = cooccurrences(tokens, 4, most=20 * NUM_STRETCHES)
    num_pairs = 2 * NUM_STRETCHES * sum(20 - distance for distance in range(1, WINDOW + 1))
    assert counts_KK.sum() == num_pairs
    shares_K = counts_KK.sum(axis=1) / num_pairs
    assert shares_K == pytest.approx(np.full(4, 0.25), abs=0.02)


def spoken(rng: np.random.Generator, num_units: int) -> np.ndarray:
    """Tokens of a language: a chain in which every unit has favourites of its own."""
    chances = rng.dirichlet(np.full(num_units, 0.1), num_units)
    ends = chances.cumsum(axis=1)
    drawn, tokens = rng.random(200_000), [0]
    for x in drawn:
        tokens.append(min(int(np.searchsorted(ends[tokens[-1]], x)), num_units - 1))
    return np.array(tokens, dtype=np.uint16)


def embedded(counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Embeddings that words with these counts would have, turned any way."""
    sums = counts.sum(axis=1)
    pmi = np.maximum(np.log(np.maximum(counts, 1e-9) * sums.sum() / np.outer(sums, sums)), 0)
    values, vectors = np.linalg.eigh(pmi)
    turn, _ = np.linalg.qr(rng.normal(size=(len(counts), len(counts))))
    return np.asarray(vectors * np.sqrt(np.abs(values)) @ turn)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_units_that_are_words_under_other_numbers_find_their_words(seed: int) -> None:
    """The words' embeddings are of the same language, turned, and the units' numbers shuffled."""
    rng = np.random.default_rng(seed)
    tokens = spoken(rng, K)
    text_VD = embedded(cooccurrences(tokens, K), rng)
    word_of_unit = rng.permutation(K)
    unit_of_word = np.argsort(word_of_unit).astype(np.uint16)
    chosen_K = nearest_tokens(text_VD, cooccurrences(unit_of_word[tokens], K))
    assert (chosen_K == word_of_unit).all()


def test_no_token_is_taken_twice() -> None:
    counts_KK = np.ones((K, K))
    chosen_K = nearest_tokens(text_table().double().numpy(), counts_KK)
    assert len(set(chosen_K.tolist())) == K
