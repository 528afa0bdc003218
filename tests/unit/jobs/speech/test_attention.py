"""Attention over frames that lie one after the other, on the ways of each device."""

from __future__ import annotations

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
