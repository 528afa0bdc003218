"""A convolution of many taps as a product for each frequency, with zeros on both sides.

A CPU does the positional convolution of HuBERT base (128 taps, 16 groups of 48 channels) six times
faster so. Pieces of one length are taken one after the other (overlap-save): rounding is that of a
piece, however long a wave is.

Shapes: T frames, D features, G groups, I features in and O out of a group, K taps, P pieces,
W frequencies.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


class LongConvolution:
    """``out_TD`` of ``in_TD`` for one weight: frame t sees K taps from t - K // 2 on."""

    def __init__(self, weight_DIK: Tensor, groups: int) -> None:
        self._num_taps = weight_DIK.shape[2]
        self._groups = groups
        self._piece = 2 * self._num_taps
        weight_GOIK = weight_DIK.float().view(groups, -1, *weight_DIK.shape[1:])
        # The conjugate turns the convolution around, into what networks call one.
        waves_GOIW = torch.fft.rfft(weight_GOIK, n=self._piece).conj()
        self._weight_WGIO = waves_GOIW.permute(3, 0, 2, 1).contiguous()

    def __call__(self, in_TD: Tensor) -> Tensor:
        """In fp32."""
        num_frames, fresh = len(in_TD), self._piece - self._num_taps + 1
        num_pieces = -(-num_frames // fresh)
        before = self._num_taps // 2
        after = (num_pieces - 1) * fresh + self._piece - num_frames - before
        pieces_PDX = functional.pad(in_TD.float(), (0, 0, before, after)).unfold(
            0, self._piece, fresh
        )
        waves_PDW = torch.fft.rfft(pieces_PDX)
        waves_PGIW = waves_PDW.view(num_pieces, self._groups, -1, waves_PDW.shape[2])
        waves_WGPI = waves_PGIW.permute(3, 1, 0, 2).contiguous()
        out_PGOW = (waves_WGPI @ self._weight_WGIO).permute(2, 1, 3, 0)
        out_PDX: Tensor = torch.fft.irfft(out_PGOW.flatten(1, 2), n=self._piece)[..., :fresh]
        return out_PDX.transpose(1, 2).flatten(0, 1)[:num_frames]
