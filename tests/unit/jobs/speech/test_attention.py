"""Attention over frames that lie one after the other, on the ways of each device."""

from __future__ import annotations

import resource

import pytest
import torch

from jobs.speech import attention


@pytest.mark.parametrize("lengths", [(5, 9, 1), (4, 4, 4), (7,)])
def test_every_wave_sees_itself_alone(lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), 3, 2, 8)
    found = attention.attended(qkv, lengths)
    for part, out in zip(qkv.split(lengths), found.split(lengths), strict=True):
        query, key, value = part.permute(1, 2, 0, 3)
        weights = torch.softmax(query @ key.transpose(1, 2) / 8**0.5, dim=-1)
        torch.testing.assert_close(out, (weights @ value).transpose(0, 1))
    torch.testing.assert_close(attention._all_at_once(qkv, lengths), found)  # as a GPU does in fp32


def test_a_bias_in_pieces_is_the_whole_one() -> None:
    torch.manual_seed(0)
    by_distance, gate = torch.randn(2, 2 * 7 - 1), torch.rand(2, 7)
    bias = attention.Bias(by_distance, gate)
    whole = torch.stack(
        [
            torch.stack([by_distance[:, j - i + 6] * gate[:, i] for j in range(7)], 1)
            for i in range(7)
        ],
        1,
    )
    torch.testing.assert_close(bias.of_frames(0, 7), whole)
    assert torch.equal(bias.of_frames(2, 5), whole[:, 2:5])


def test_a_long_waves_biases_take_bounded_memory() -> None:
    """All at once they would be 1.2 GB, and three times that with what is computed of them."""
    num_frames, num_heads = 12_000, 2
    torch.manual_seed(0)
    bias = attention.Bias(torch.randn(num_heads, 2 * num_frames - 1), torch.rand(2, num_frames))
    qkv = torch.randn(num_frames, 3, num_heads, 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = attention.attended(qkv, [num_frames], [bias])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
    some = slice(5_000, 5_003)
    query, key, value = qkv.permute(1, 2, 0, 3)
    scores = query[:, some] @ key.transpose(1, 2) / 2 + bias.of_frames(5_000, 5_003)
    expected = (torch.softmax(scores, -1) @ value).transpose(0, 1)
    torch.testing.assert_close(found[some], expected, atol=1e-5, rtol=1e-4)


def test_packing_is_undone() -> None:
    feats = torch.arange(12.0).view(6, 2)
    padded = attention.by_wave(feats, [1, 3, 2])
    assert padded.shape == (3, 3, 2)
    assert not padded[0, 1:].any()
    assert torch.equal(attention.packed(padded, [1, 3, 2]), feats)


@pytest.mark.parametrize("lengths", [(5, 9, 1), (4, 4)])
def test_waves_in_rows_see_the_same(lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    rows = attention.Rows(10, torch.tensor(lengths))
    qkv = torch.randn(10 * len(lengths), 3, 2, 8)
    kept = rows.is_wave.flatten()
    found = attention.attended(qkv, rows)
    torch.testing.assert_close(found[kept], attention.attended(qkv[kept], lengths))


def test_what_lies_behind_a_wave_in_its_row_is_nothing_to_a_convolution() -> None:
    rows = attention.Rows(3, torch.tensor([1, 3]))
    padded = attention.by_wave(torch.full((6, 2), torch.nan), rows)
    assert padded.isnan().sum(dim=(1, 2)).tolist() == [2, 6]
    assert not padded[0, 1:].any()
    feats = torch.arange(12.0).view(6, 2)
    assert torch.equal(attention.packed(attention.by_wave(feats, rows), rows)[3:], feats[3:])
