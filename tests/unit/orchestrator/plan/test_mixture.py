"""Shares are kept at every position, whatever the weights."""

from __future__ import annotations

import random

import numpy as np
import pytest

from orchestrator.plan.mixture import Pattern, Stream
from orchestrator.plan.token_order import TokenOrder, epoch_order

PINNED = [2, 2, 1, 2, 2, 0, 2, 2, 1, 2]


def some_weights(seed: int) -> list[int]:
    some = random.Random(seed)
    most = some.choice([1, 3, 20, 200])
    return [some.randint(1, most) for _ in range(some.randint(1, 9))]


@pytest.mark.parametrize("seed", range(30))
def test_each_stream_is_within_one_of_its_share_at_every_position(seed: int) -> None:
    weights = some_weights(seed)
    length = sum(weights)
    streams, uses = Pattern(weights).at(np.arange(3 * length))
    for stream, weight in enumerate(weights):
        own = streams == stream
        shares = np.arange(1, 3 * length + 1) * weight / length
        assert np.abs(np.cumsum(own) - shares).max() < 1
        assert uses[own].tolist() == list(range(3 * weight))


def test_the_pattern_is_pinned() -> None:
    """Another one would silently change every training that has a mixture."""
    assert Pattern([1, 2, 7]).at(np.arange(10))[0].tolist() == PINNED
    assert epoch_order(8, seed=3, epoch=2, stream=1).tolist() == [2, 0, 5, 4, 6, 1, 3, 7]


def streams(**about: tuple[int, int]) -> list[Stream]:
    return [Stream(name=name, num_windows=n, weight=w) for name, (n, w) in about.items()]


MIXED = streams(a=(50, 1), b=(8, 2), c=(1, 1))


def test_any_cut_of_a_mixed_order_is_the_same_order() -> None:
    order = TokenOrder(59, seed=0, mixture=MIXED)
    whole = order.draw(0, 500).windows.tolist()
    assert [int(order.draw(n, 1).windows[0]) for n in range(500)] == whole
    assert order.draw(123, 200).windows.tolist() == whole[123:323]
    again = TokenOrder(59, seed=0, mixture=MIXED)
    assert again.draw(400, 100).windows.tolist() == whole[400:]


def test_each_stream_has_epochs_of_its_own() -> None:
    windows = TokenOrder(59, seed=0, mixture=MIXED).draw(0, 400).windows
    uses = np.bincount(windows, minlength=59)
    assert set(uses[:50].tolist()) == {2}
    assert set(uses[50:58].tolist()) == {25}
    assert uses[58] == 100
    first = windows[windows < 50][:50]
    assert sorted(first.tolist()) == list(range(50))
    assert first.tolist() != list(range(50))


def test_one_stream_is_no_mixture() -> None:
    plain, mixed = TokenOrder(11, seed=4), TokenOrder(11, seed=4, mixture=streams(a=(11, 1)))
    assert plain.draw(0, 70).windows.tolist() == mixed.draw(0, 70).windows.tolist()


def test_what_is_skipped_was_of_its_stream() -> None:
    plain = TokenOrder(59, seed=0, mixture=MIXED)
    order = TokenOrder(59, seed=0, mixture=MIXED, skips=frozenset({2, 3, 7}))
    draw = order.draw(0, 20)
    assert draw.cursor == 23
    assert draw.windows.tolist() == plain.windows_at(draw.positions).tolist()


def test_streams_of_other_windows_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="are not 60 together"):
        TokenOrder(60, seed=0, mixture=MIXED)
