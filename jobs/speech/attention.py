"""What looks along time, over frames of many waves that lie one after the other.

Every wave is looked at as if it were alone. How is a matter of the device: a CPU takes waves in
turn, an accelerator all at once, without a mask where it can.

Shapes: N frames of all waves, T of one, B waves, H heads, E features of one head, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

Lengths = Sequence[int]


def attended(qkv_N3HE: Tensor, lengths: Lengths, biases: Sequence[Tensor] | None = None) -> Tensor:
    """Attention (arXiv 1706.03762) of each wave's frames to all of that wave; ``out_NHE``.

    ``biases``: ``bias_HTT`` of each wave, which is added before the softmax.
    """
    if biases is None and qkv_N3HE.device.type == "cuda":
        return _all_at_once(qkv_N3HE, lengths)
    outs = []
    for number, part_T3HE in enumerate(torch.split(qkv_N3HE, list(lengths))):
        bias_1HTT = None if biases is None else biases[number][None].to(qkv_N3HE.dtype)
        outs.append(_of_equal_lengths(part_T3HE[None], bias_1HTT)[0])
    return torch.cat(outs)


def by_wave(packed_ND: Tensor, lengths: Lengths) -> Tensor:
    """Frames as ``padded_BTD``, with zeros after each wave's."""
    waves = torch.split(packed_ND, list(lengths))
    return torch.nn.utils.rnn.pad_sequence(list(waves), batch_first=True)


def packed(padded_BTD: Tensor, lengths: Lengths) -> Tensor:
    """The inverse of `by_wave`."""
    return torch.cat([row_TD[:n] for row_TD, n in zip(padded_BTD, lengths, strict=True)])


def _all_at_once(qkv_N3HE: Tensor, lengths: Lengths) -> Tensor:
    if len(set(lengths)) == 1:
        shape = (len(lengths), lengths[0], *qkv_N3HE.shape[1:])
        return _of_equal_lengths(qkv_N3HE.view(shape)).flatten(0, 1)
    if _has_flash(qkv_N3HE):
        return _of_any_lengths(qkv_N3HE, lengths)
    padded_BTX = by_wave(qkv_N3HE.flatten(1), lengths)
    lengths_B = torch.tensor(lengths, device=qkv_N3HE.device)
    is_wave_BT = torch.arange(padded_BTX.shape[1], device=qkv_N3HE.device) < lengths_B[:, None]
    qkv_BT3HE = padded_BTX.view(*padded_BTX.shape[:2], *qkv_N3HE.shape[1:])
    return packed(_of_equal_lengths(qkv_BT3HE, is_wave_BT[:, None, None]), lengths)


def _has_flash(qkv_N3HE: Tensor) -> bool:
    """Whether there is FlashAttention's kernel: in 16 bits, from NVIDIA's Ampere on."""
    if qkv_N3HE.dtype not in (torch.float16, torch.bfloat16):
        return False
    return torch.cuda.is_available() and torch.cuda.get_device_capability(qkv_N3HE.device)[0] >= 8


def _of_equal_lengths(qkv_BT3HE: Tensor, mask: Tensor | None = None) -> Tensor:
    query_BHTE, key_BHTE, value_BHTE = qkv_BT3HE.permute(2, 0, 3, 1, 4)
    out_BHTE = functional.scaled_dot_product_attention(
        query_BHTE, key_BHTE, value_BHTE, attn_mask=mask
    )
    return out_BHTE.transpose(1, 2)


def _of_any_lengths(qkv_N3HE: Tensor, lengths: Lengths) -> Tensor:
    """FlashAttention's kernel for waves of any length, which knows 16 bits alone."""
    from torch.nn.attention.varlen import varlen_attn

    ends_B = torch.tensor(lengths, device=qkv_N3HE.device).cumsum(0)
    starts_B1 = functional.pad(ends_B, (1, 0)).to(torch.int32)
    query_NHE, key_NHE, value_NHE = (part.contiguous() for part in qkv_N3HE.unbind(1))
    longest = max(lengths)
    # One split: what is added up for a frame depends on its wave alone.
    found = varlen_attn(
        *(query_NHE, key_NHE, value_NHE, starts_B1, starts_B1, longest, longest), num_splits=1
    )
    return found if isinstance(found, Tensor) else found[0]
