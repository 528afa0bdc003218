from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.lm.token_stream import TokenStream, open_tokens
from orchestrator.errors import CorruptError, RequestError


def stream(num_tokens: int = 41, context_length: int = 8) -> TokenStream:
    return TokenStream(np.arange(num_tokens, dtype="<u2"), context_length=context_length)


def test_every_token_but_the_first_is_a_target_once_per_epoch() -> None:
    tokens = stream()
    targets = tokens.windows(np.arange(tokens.num_windows))[:, 1:]
    assert sorted(targets.flatten()) == list(range(1, 41))


def test_windows_overlap_by_one_token() -> None:
    first, second = stream().windows(np.array([0, 1]))
    assert first.tolist() == list(range(9))
    assert second.tolist() == list(range(8, 17))


@pytest.mark.parametrize(("num_tokens", "num_windows"), [(9, 1), (16, 1), (17, 2), (41, 5)])
def test_number_of_windows(num_tokens: int, num_windows: int) -> None:
    assert stream(num_tokens).num_windows == num_windows


@pytest.mark.parametrize("num_tokens", [0, 1, 8])
def test_too_few_tokens_is_a_clear_error(num_tokens: int) -> None:
    with pytest.raises(
        RequestError, match=rf"has {num_tokens} tokens, fewer than the 9 of one window"
    ):
        stream(num_tokens)


def test_no_window_is_of_two_streams() -> None:
    tokens = TokenStream(np.arange(41, dtype="<u2"), context_length=8, stream_tokens=[19, 12, 10])
    assert tokens.num_windows == 4
    found = tokens.windows(np.array([3, 1, 0, 2]))
    assert found[:, 0].tolist() == [31, 8, 0, 19]
    assert (np.diff(found) == 1).all()


@pytest.mark.parametrize("sizes", [[20, 20], [41, 1], [40]])
def test_streams_of_another_file_are_corrupt(sizes: list[int]) -> None:
    with pytest.raises(CorruptError, match="pack again"):
        TokenStream(np.arange(41, dtype="<u2"), context_length=8, stream_tokens=sizes)


def test_a_stream_without_a_window_is_a_clear_error() -> None:
    with pytest.raises(RequestError, match="has 5 tokens, fewer than the 9 of one window"):
        TokenStream(np.arange(41, dtype="<u2"), context_length=8, stream_tokens=[36, 5])


def test_an_empty_file_has_no_tokens(tmp_path: Path) -> None:
    (tmp_path / "train.bin").touch()
    assert len(open_tokens(tmp_path / "train.bin")) == 0
