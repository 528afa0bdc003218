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
from typing import Any

import torch
from torch import Tensor, nn

from jobs.speech.grid import Grid, grid_of

_Activation = Callable[[Tensor], Tensor]

CHUNK_FRAMES = 50
"""Frames that a CPU takes through all convolutions before the next, so that they stay in cache."""


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
        """``frames_NO`` of all rows at once: what suits a GPU.

        Rows are padded to whole hops, so that each begins where a row of every layer does; frames
        that look into the next row are computed and dropped.
        """
        wav_BS = torch.nn.utils.rnn.pad_sequence(
            [self._centred(wav_S[:n]) for wav_S, n in zip(wav_BS, lengths, strict=True)],
            batch_first=True,
        )
        weights, biases = zip(
            *(self.first.of_wave(wav_S[:n]) for wav_S, n in zip(wav_BS, lengths, strict=True)),
            strict=True,
        )
        num_slots = -(-wav_BS.shape[1] // self.grid.hop)
        past = num_slots * self.grid.hop + self.first.kernel - self.first.stride
        wav_BS = nn.functional.pad(wav_BS, (0, past - wav_BS.shape[1]))
        frames_NO = self._frames(wav_BS, torch.stack(weights), torch.stack(biases))
        kept = [
            torch.arange(self.grid.num_frames(n), device=wav_BS.device) + row * num_slots
            for row, n in enumerate(lengths)
        ]
        return frames_NO[torch.cat(kept)]

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
        self.norm_over_time = norm if isinstance(norm, nn.GroupNorm) else None
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
        dtype = self.bias_O.dtype
        if self.norm_over_time is None:
            return self.taps_KO.to(dtype), self.bias_O
        norm, taps_KO = self.norm_over_time, self.taps_KO.double()
        rows_TK = wav_S.double().unfold(0, self.kernel, self.stride)
        mean_K = rows_TK.mean(0)
        centred_TK = rows_TK - mean_K
        spread_KK = centred_TK.T @ centred_TK / len(rows_TK)
        var_O = ((spread_KK @ taps_KO) * taps_KO).sum(0)
        scale_O = norm.weight.double() / torch.sqrt(var_O + norm.eps)
        shift_O = norm.bias.double() - mean_K @ taps_KO * scale_O  # its own bias cancels
        return (taps_KO * scale_O).to(dtype), shift_O.to(dtype)


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
    return _OverChannels(norm) if isinstance(norm, nn.LayerNorm) else nn.Identity()


def _fixed(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().contiguous(), requires_grad=False)
