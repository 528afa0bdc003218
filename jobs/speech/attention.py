"""What looks along time, over frames of many waves that lie one after the other.

Every wave is looked at as if it were alone. How is a matter of the device: a CPU takes waves in
turn, an accelerator all at once, without a mask where it can.

Shapes: N frames of all waves, T of one, B waves, H heads, E features of one head, D features.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Rows(NamedTuple):
    """Waves in rows of equally many frames, each at the beginning of its row.

    The host knows no more than the shape, so that what is computed can be recorded once for all.
    """

    num_frames: int
    """Of each row."""
    lengths_B: Tensor
    """Frames of each wave."""

    @property
    def is_wave(self) -> Tensor:
        """BxT: which frames are of a wave."""
        frames_T = torch.arange(self.num_frames, device=self.lengths_B.device)
        return frames_T < self.lengths_B[:, None]


_VARLEN = "torch.nn.attention.varlen"
_MOST_BIASES = 1 << 22
"""Of one head at a time, which a wave of 41 s has at 50 Hz."""
Lengths = Sequence[int] | Rows
"""Frames of each wave: of waves that lie one after the other, or that begin a row each."""


class Bias(NamedTuple):
    """What is added to a wave's attention before the softmax: by distance, minded more or less.

    Of a wave's frames to each other it would be T x T numbers for each head; here it is 2 T.
    """

    by_distance_HX: Tensor
    """From the last frame to the first, to from the first to the last: X = 2 T - 1."""
    gate_HT: Tensor
    """Of the frame that looks."""

    def of_frames(self, start: int, stop: int) -> Tensor:
        """``bias_HQT`` of some frames that look at all."""
        num_frames = self.gate_HT.shape[1]
        seen_HTT = self.by_distance_HX.unfold(1, num_frames, 1)  # row T - 1 - i is frame i's
        seen_HQT = seen_HTT[:, num_frames - stop : num_frames - start].flip(1)
        return self.gate_HT[:, start:stop, None] * seen_HQT


def attended(qkv_N3HE: Tensor, lengths: Lengths, biases: Sequence[Bias] | None = None) -> Tensor:
    """Attention (arXiv 1706.03762) of each wave's frames to all of that wave; ``out_NHE``."""
    if isinstance(lengths, Rows):
        return _in_rows(qkv_N3HE, lengths)
    if biases is None and qkv_N3HE.device.type == "cuda":
        return _all_at_once(qkv_N3HE, lengths)
    parts = torch.split(qkv_N3HE, list(lengths))
    if biases is None:
        return torch.cat([_of_equal_lengths(part_T3HE[None])[0] for part_T3HE in parts])
    return torch.cat([_biased(*one) for one in zip(parts, biases, strict=True)])


def by_wave(packed_ND: Tensor, lengths: Lengths) -> Tensor:
    """Frames as ``padded_BTD``, with zeros after each wave's."""
    if isinstance(lengths, Rows):
        rows_BTD = packed_ND.view(-1, lengths.num_frames, packed_ND.shape[1])
        return rows_BTD.masked_fill(~lengths.is_wave[..., None], 0)
    waves = torch.split(packed_ND, list(lengths))
    return torch.nn.utils.rnn.pad_sequence(list(waves), batch_first=True)


def packed(padded_BTD: Tensor, lengths: Lengths) -> Tensor:
    """The inverse of `by_wave`."""
    if isinstance(lengths, Rows):
        return padded_BTD.flatten(0, 1)
    return torch.cat([row_TD[:n] for row_TD, n in zip(padded_BTD, lengths, strict=True)])


def _biased(qkv_T3HE: Tensor, bias: Bias) -> Tensor:
    """So many frames at a time that their biases take bounded memory, however long the wave is."""
    query_HTE, key_HTE, value_HTE = qkv_T3HE.permute(1, 2, 0, 3)
    num_frames = len(qkv_T3HE)
    step = max(1, _MOST_BIASES // num_frames)
    # Written in place: what is kept between pieces keeps a CPU's allocator from using theirs again.
    out_HTE = torch.empty_like(query_HTE)
    for start in range(0, num_frames, step):
        stop = min(start + step, num_frames)
        bias_HQT = bias.of_frames(start, stop).to(qkv_T3HE.dtype)
        out_HTE[:, start:stop] = functional.scaled_dot_product_attention(
            query_HTE[None, :, start:stop],
            key_HTE[None],
            value_HTE[None],
            attn_mask=bias_HQT[None],
        )[0]
    return out_HTE.transpose(0, 1)


def _in_rows(qkv_N3HE: Tensor, rows: Rows) -> Tensor:
    """What lies behind a wave in its row sees itself alone, or the wave: it is of no use."""
    if _has_flash(qkv_N3HE):
        starts_B = torch.arange(len(rows.lengths_B), device=qkv_N3HE.device) * rows.num_frames
        edges_B2 = torch.stack([starts_B + rows.lengths_B, starts_B + rows.num_frames], 1)
        return _between(qkv_N3HE, edges_B2.flatten(), rows.num_frames)
    return _with_mask(qkv_N3HE, rows)


def _with_mask(qkv_N3HE: Tensor, rows: Rows) -> Tensor:
    qkv_BT3HE = qkv_N3HE.view(-1, rows.num_frames, *qkv_N3HE.shape[1:])
    return _of_equal_lengths(qkv_BT3HE, rows.is_wave[:, None, None]).flatten(0, 1)


def _all_at_once(qkv_N3HE: Tensor, lengths: Sequence[int]) -> Tensor:
    if len(set(lengths)) == 1:
        shape = (len(lengths), lengths[0], *qkv_N3HE.shape[1:])
        return _of_equal_lengths(qkv_N3HE.view(shape)).flatten(0, 1)
    if _has_flash(qkv_N3HE):
        ends_B = torch.tensor(lengths, device=qkv_N3HE.device).cumsum(0)
        return _between(qkv_N3HE, ends_B, max(lengths))
    padded_BTX = by_wave(qkv_N3HE.flatten(1), lengths)
    rows = Rows(padded_BTX.shape[1], torch.tensor(lengths, device=qkv_N3HE.device))
    out_NHE = _in_rows(padded_BTX.view(-1, *qkv_N3HE.shape[1:]), rows)
    return packed(out_NHE.view(len(lengths), -1, *out_NHE.shape[1:]), lengths)


def _has_flash(qkv_N3HE: Tensor) -> bool:
    """Whether there is FlashAttention's kernel: in 16 bits, from Ampere and torch 2.10 on."""
    if qkv_N3HE.dtype not in (torch.float16, torch.bfloat16) or find_spec(_VARLEN) is None:
        return False
    return torch.cuda.is_available() and torch.cuda.get_device_capability(qkv_N3HE.device)[0] >= 8


def _of_equal_lengths(qkv_BT3HE: Tensor, mask: Tensor | None = None) -> Tensor:
    query_BHTE, key_BHTE, value_BHTE = qkv_BT3HE.permute(2, 0, 3, 1, 4)
    out_BHTE = functional.scaled_dot_product_attention(
        query_BHTE, key_BHTE, value_BHTE, attn_mask=mask
    )
    return out_BHTE.transpose(1, 2)


def _between(qkv_N3HE: Tensor, ends_B: Tensor, longest: int) -> Tensor:
    """FlashAttention's kernel, which knows 16 bits alone, for frames up to each of some ends."""
    from torch.nn.attention.varlen import varlen_attn

    edges_B1 = functional.pad(ends_B, (1, 0)).to(torch.int32)
    query_NHE, key_NHE, value_NHE = (part.contiguous() for part in qkv_N3HE.unbind(1))
    # One split: what is added up for a frame depends on its wave alone. Older releases always do.
    asked: dict[str, Any] = (
        {"num_splits": 1} if "num_splits" in inspect.signature(varlen_attn).parameters else {}
    )
    found = varlen_attn(
        *(query_NHE, key_NHE, value_NHE, edges_B1, edges_B1, longest, longest), **asked
    )
    return found if isinstance(found, Tensor) else found[0]
