"""The convolutions of HuBERT, wav2vec 2.0 and WavLM as matrix products, exact for every wave.

In: waves. Out: their frames before projection, each what it is when its wave is alone.

With channels last, the rows that one stride passes lie side by side in memory: a convolution is one
product for each stride that its kernel begins, added up, and nothing is copied. Base models norm
the first convolution over all of a wave; mean and variance follow from those of the samples under
the kernel, so the norm is known before the convolution is computed, becomes part of its weights,
and what lies beyond a wave never counts.

Shapes: B waves, S samples at 16 kHz, T steps in time, C channels in, O channels out, K taps,
N frames of all waves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from jobs.speech.grid import Grid, grid_of

_Activation = Callable[[Tensor], Tensor]

CHUNK_FRAMES = 50
"""Frames that a CPU takes through all convolutions before the next, so that they stay in cache."""
_ROWS_IN_FLOAT64 = 1 << 17
"""Steps of a wave whose moments are taken at a time: 41 s of it, as 31 MB."""


class FrontEnd(nn.Module):
    """All convolutions of a model."""

    def __init__(self, blocks: Sequence[Any]) -> None:
        """``blocks``: the layers of transformers' feature encoder."""
        super().__init__()
        self.grid: Grid = grid_of(
            [block.conv.kernel_size[0] for block in blocks],
            [block.conv.stride[0] for block in blocks],
        )
        self.first = _First(blocks[0])
        self.later = nn.ModuleList(_Later(block) for block in blocks[1:])

    def one_by_one(self, waves: Sequence[Tensor]) -> Tensor:
        """``frames_NO`` wave after wave, in chunks: what suits a CPU, and no wave meets another."""
        return torch.cat([part for wav_S in waves for part in self._chunks(self._centred(wav_S))])

    def together(self, wav_BS: Tensor, lengths: Sequence[int]) -> Tensor:
        """``frames_NO`` of all rows at once: what suits a GPU."""
        frames_NO = self.in_rows(wav_BS, torch.tensor(lengths, device=wav_BS.device))
        per_row = len(frames_NO) // len(wav_BS)
        kept = [
            torch.arange(self.grid.num_frames(n)) + row * per_row for row, n in enumerate(lengths)
        ]
        return frames_NO[torch.cat(kept).to(wav_BS.device)]

    def in_rows(self, wav_BS: Tensor, lengths_B: Tensor) -> Tensor:
        """``frames_NO``, equally many of each row: those past its wave's are computed for nothing.

        ``lengths_B``: samples, of a whole frame at least; the host need not know them. Rows are
        padded to whole hops, so that each begins where a row of every layer does.
        """
        wav_BS = self._centred_rows(wav_BS, lengths_B)
        weight_BKO, bias_BO = self.first.of_waves(wav_BS, lengths_B)
        num_hops = -(-wav_BS.shape[1] // self.grid.hop)
        past = num_hops * self.grid.hop + self.first.kernel - self.first.stride
        wav_BS = nn.functional.pad(wav_BS, (0, past - wav_BS.shape[1]))
        frames_NO = self._frames(wav_BS, weight_BKO, bias_BO)
        return nn.functional.pad(frames_NO, (0, 0, 0, len(wav_BS) * num_hops - len(frames_NO)))

    def _centred_rows(self, wav_BS: Tensor, lengths_B: Tensor) -> Tensor:
        """As `_centred`, with zeros past each wave."""
        is_wave_BS = torch.arange(wav_BS.shape[1], device=wav_BS.device) < lengths_B[:, None]
        wav_BS = wav_BS.masked_fill(~is_wave_BS, 0)
        if self.first.norm_over_time is None:
            return wav_BS
        mean_B = wav_BS.sum(1, dtype=torch.float64) / lengths_B
        return (wav_BS - mean_B.to(wav_BS.dtype)[:, None]).masked_fill(~is_wave_BS, 0)

    def _centred(self, wav_S: Tensor) -> Tensor:
        """Without its mean, where the first norm takes that away: products are exacter so."""
        if self.first.norm_over_time is None:
            return wav_S
        return wav_S - wav_S.mean(dtype=torch.float64).to(wav_S.dtype)

    def _chunks(self, wav_S: Tensor) -> Iterator[Tensor]:
        weight_KO, bias_O = self.first.of_wave(wav_S)
        num_frames = self.grid.num_frames(len(wav_S))
        for start in range(0, num_frames, CHUNK_FRAMES):
            size = self.grid.num_samples(min(CHUNK_FRAMES, num_frames - start))
            chunk_1S = wav_S[None, start * self.grid.hop :][:, :size]
            yield self._frames(chunk_1S, weight_KO[None], bias_O[None])

    def _frames(self, wav_BS: Tensor, weight_BKO: Tensor, bias_BO: Tensor) -> Tensor:
        x_TC: Tensor = self.first(wav_BS, weight_BKO, bias_BO).flatten(0, 1)
        for convolution in self.later:
            x_TC = convolution(x_TC)
        return x_TC


class _First(nn.Module):
    """The convolution of samples; its norm over time is in the weights of each wave."""

    taps_KO: Tensor

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.kernel: int = block.conv.kernel_size[0]
        self.stride: int = block.conv.stride[0]
        # Not a parameter: in fp32 until a wave's norm is in it, whatever is computed in.
        self.register_buffer("taps_KO", block.conv.weight[:, 0].T.detach().contiguous())
        bias_O = block.conv.bias
        self.bias_O = _fixed(
            block.conv.weight.new_zeros(len(block.conv.weight)) if bias_O is None else bias_O
        )
        norm = getattr(block, "layer_norm", None)
        self.norm_over_time = deepcopy(norm) if isinstance(norm, nn.GroupNorm) else None
        self.norm = _norm_over_channels(block)
        self.activation: _Activation = block.activation

    def forward(self, wav_BS: Tensor, weight_BKO: Tensor, bias_BO: Tensor) -> Tensor:
        rows_BTK = wav_BS.to(weight_BKO.dtype).unfold(1, self.kernel, self.stride)
        ones_BT1 = rows_BTK.new_ones(()).expand(*rows_BTK.shape[:2], 1)
        weight_BXO = torch.cat([weight_BKO, bias_BO[:, None]], 1)  # the bias as one more tap
        out_BTO = torch.cat([rows_BTK, ones_BT1], 2) @ weight_BXO
        return self.activation(self.norm(out_BTO))

    def of_wave(self, wav_S: Tensor) -> tuple[Tensor, Tensor]:
        """``weight_KO`` and ``bias_O`` of a wave that holds a frame."""
        if self.norm_over_time is None:
            return self.taps_KO.to(self.bias_O.dtype), self.bias_O
        rows_TK = wav_S.unfold(0, self.kernel, self.stride)
        parts = torch.split(rows_TK, _ROWS_IN_FLOAT64)
        mean_K = reduce(add, (part_TK.double().sum(0) for part_TK in parts)) / len(rows_TK)
        centred = (part_TK.double() - mean_K for part_TK in parts)
        spread_KK = reduce(add, (part_TK.T @ part_TK for part_TK in centred)) / len(rows_TK)
        return self._normed(self.norm_over_time, mean_K, spread_KK)

    def of_waves(self, wav_BS: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """``weight_BKO`` and ``bias_BO`` of rows that hold a frame each, and zeros after it."""
        if self.norm_over_time is None:
            weight_KO, num_waves = self.taps_KO.to(self.bias_O.dtype), len(wav_BS)
            return weight_KO.expand(num_waves, -1, -1), self.bias_O.expand(num_waves, -1)
        rows_BTK = wav_BS.double().unfold(1, self.kernel, self.stride)
        num_rows_B = (lengths_B - self.kernel) // self.stride + 1
        steps_T = torch.arange(rows_BTK.shape[1], device=wav_BS.device)
        is_row_BT1 = (steps_T < num_rows_B[:, None])[..., None]
        mean_BK = rows_BTK.masked_fill(~is_row_BT1, 0).sum(1) / num_rows_B[:, None]
        centred_BTK = (rows_BTK - mean_BK[:, None]).masked_fill(~is_row_BT1, 0)
        spread_BKK = centred_BTK.mT @ centred_BTK / num_rows_B[:, None, None]
        return self._normed(self.norm_over_time, mean_BK, spread_BKK)

    def _normed(
        self, norm: nn.GroupNorm, mean_K: Tensor, spread_KK: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weights with the norm in them, of each wave where mean and spread are of several."""
        taps_KO, dtype = self.taps_KO.double(), self.bias_O.dtype
        var_O = ((spread_KK @ taps_KO) * taps_KO).sum(-2)
        scale_O = norm.weight.double() / torch.sqrt(var_O + norm.eps)
        shift_O = norm.bias.double() - mean_K @ taps_KO * scale_O  # its own bias cancels
        return (taps_KO * scale_O[..., None, :]).to(dtype), shift_O.to(dtype)


class _Later(nn.Module):
    """A convolution of channels, its norm over channels where it has one, its activation."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.kernel: int = block.conv.kernel_size[0]
        self.stride: int = block.conv.stride[0]
        taps_KCO = block.conv.weight.permute(2, 1, 0)
        self.weights = nn.ParameterList(
            _fixed(part_KCO.flatten(0, 1)) for part_KCO in taps_KCO.split(self.stride)
        )
        bias_O = block.conv.bias
        self.bias_O = None if bias_O is None else _fixed(bias_O)
        self.norm = _norm_over_channels(block)
        self.activation: _Activation = block.activation

    def forward(self, x_TC: Tensor) -> Tensor:
        num_channels = x_TC.shape[1]
        num_steps = (len(x_TC) - self.kernel) // self.stride + 1
        hop = self.stride * num_channels
        out_TO: Tensor | None = None
        for number, weight_IO in enumerate(self.weights):
            start = x_TC.storage_offset() + number * hop
            rows_TI = x_TC.as_strided((num_steps, len(weight_IO)), (hop, 1), start)
            if out_TO is not None:
                out_TO.addmm_(rows_TI, weight_IO)
            elif self.bias_O is None:
                out_TO = rows_TI @ weight_IO
            else:
                out_TO = torch.addmm(self.bias_O, rows_TI, weight_IO)
        return self.activation(self.norm(out_TO))


class _OverChannels(nn.Module):
    """A norm of each step, in fp32 whatever the convolutions compute in."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x.float()).to(x.dtype)
        return normed


def _norm_over_channels(block: Any) -> nn.Module:
    norm = getattr(block, "layer_norm", None)
    return _OverChannels(deepcopy(norm)) if isinstance(norm, nn.LayerNorm) else nn.Identity()


def _fixed(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().contiguous(), requires_grad=False)
