from __future__ import annotations

import numpy as np

from orchestrator.plan.token_order import HASH_START, TokenOrder, chain_hash, epoch_order

PINNED = [7, 6, 4, 5, 1, 0, 3, 2]


def windows(order: TokenOrder, cursor: int, count: int) -> list[int]:
    return order.draw(cursor, count).windows.tolist()


def test_epochs_are_permutations_that_differ() -> None:
    first, second = (epoch_order(1000, seed=0, epoch=epoch) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(1000))
    assert first.tolist() != second.tolist()
    assert epoch_order(1000, seed=1, epoch=0).tolist() != first.tolist()


def test_the_order_is_pinned() -> None:
    """Another numpy that draws another permutation would silently change every training."""
    assert epoch_order(8, seed=3, epoch=2).tolist() == PINNED


def test_any_cut_of_the_order_is_the_same_order() -> None:
    order = TokenOrder(5, seed=0)
    whole = windows(order, 0, 40)
    assert [windows(order, n, 1)[0] for n in range(40)] == whole
    assert windows(order, 3, 20) == whole[3:23]


def test_a_batch_larger_than_an_epoch_wraps() -> None:
    ids = windows(TokenOrder(2, seed=0), 0, 7)
    assert [sorted(ids[n : n + 2]) for n in (0, 2, 4)] == [[0, 1]] * 3


def test_skipped_positions_are_passed_over_and_nothing_else() -> None:
    plain, around = TokenOrder(10, seed=0), TokenOrder(10, seed=0, skips=frozenset({2, 3, 7}))
    draw = around.draw(0, 6)
    assert draw.positions.tolist() == [0, 1, 4, 5, 6, 8]
    assert draw.windows.tolist() == plain.windows_at(draw.positions).tolist()
    assert draw.cursor == 9
    assert around.draw(draw.cursor, 3).positions.tolist() == [9, 10, 11]


def test_batches_cover_every_window_once_an_epoch() -> None:
    order = TokenOrder(12, seed=1)
    used = np.concatenate([draw.windows for draw in order.batches(steps=6, batch=4)])
    assert np.bincount(used, minlength=12).tolist() == [2] * 12


def test_the_hash_chains() -> None:
    one = chain_hash(HASH_START, np.array([1, 2]))
    assert len(one) == 64
    assert chain_hash(one, np.array([3])) != chain_hash(HASH_START, np.array([3]))
    assert chain_hash(HASH_START, np.array([2, 1])) != one
