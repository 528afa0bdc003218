from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.lm.token_stream import (
    HASH_START,
    TokenStream,
    chain_hash,
    epoch_order,
    open_tokens,
    stripe,
)
from orchestrator.errors import RequestError

PINNED = [7, 6, 4, 5, 1, 0, 3, 2]


def stream(num_tokens: int = 41, context_length: int = 8, seed: int = 0) -> TokenStream:
    return TokenStream(np.arange(num_tokens, dtype="<u2"), context_length=context_length, seed=seed)


def test_every_token_but_the_first_is_a_target_once_per_epoch() -> None:
    tokens = stream()
    targets = tokens.windows(tokens.sample_ids(0, tokens.num_windows))[:, 1:]
    assert sorted(targets.flatten()) == list(range(1, 41))


def test_windows_overlap_by_one_token() -> None:
    first, second = stream().windows(np.array([0, 1]))
    assert first.tolist() == list(range(9))
    assert second.tolist() == list(range(8, 17))


@pytest.mark.parametrize(("num_tokens", "num_windows"), [(9, 1), (16, 1), (17, 2), (41, 5)])
def test_number_of_windows(num_tokens: int, num_windows: int) -> None:
    assert stream(num_tokens).num_windows == num_windows


def test_epochs_are_permutations_that_differ() -> None:
    first, second = (epoch_order(1000, seed=0, epoch=epoch) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(1000))
    assert first.tolist() != second.tolist()
    assert epoch_order(1000, seed=1, epoch=0).tolist() != first.tolist()


def test_the_order_is_pinned() -> None:
    """Another numpy that draws another permutation would silently change every training."""
    assert epoch_order(8, seed=3, epoch=2).tolist() == PINNED


def test_any_cut_of_the_order_is_the_same_order() -> None:
    whole = stream().sample_ids(0, 40).tolist()
    assert [int(stream().sample_ids(n, 1)[0]) for n in range(40)] == whole
    assert stream().sample_ids(3, 20).tolist() == whole[3:23]


def test_a_batch_larger_than_an_epoch_wraps() -> None:
    tokens = stream(17)
    ids = tokens.sample_ids(0, 7)
    assert [sorted(ids[n : n + 2].tolist()) for n in (0, 2, 4)] == [[0, 1]] * 3


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_stripes_are_the_batch(world_size: int) -> None:
    ids = stream(200).sample_ids(5, 12)
    stripes = [stripe(ids, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(stripes)) == sorted(ids)
    assert {len(s) for s in stripes} == {12 // world_size}


def test_the_hash_chains() -> None:
    one = chain_hash(HASH_START, np.array([1, 2]))
    assert len(one) == 64
    assert chain_hash(one, np.array([3])) != chain_hash(HASH_START, np.array([3]))
    assert chain_hash(HASH_START, np.array([2, 1])) != one


@pytest.mark.parametrize("num_tokens", [0, 1, 8])
def test_too_few_tokens_is_a_clear_error(num_tokens: int) -> None:
    with pytest.raises(
        RequestError, match=rf"has {num_tokens} tokens, fewer than the 9 of one window"
    ):
        stream(num_tokens)


def test_an_empty_file_has_no_tokens(tmp_path: Path) -> None:
    (tmp_path / "train.bin").touch()
    assert len(open_tokens(tmp_path / "train.bin")) == 0
