"""The transformer of HuBERT, wav2vec 2.0 and WavLM over frames of many waves, without padding.

In: frames of all waves, one after the other. Out: by default ``hidden_states[layer]`` of each in
transformers' counting (fairseq's ``output_layer``), before the norm that pre-norm models apply at
the very end. All frames share the products with weights; what looks along time (the positional
convolution, attention, WavLM's position bias) looks at one wave, and so finds what it finds at
batch size 1.

Shapes: N frames of all waves, T of one, B waves, C channels of the front end, D features, H heads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from copy import deepcopy
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.speech.attention import Bias, Lengths, Rows, attended, by_wave, packed
from jobs.speech.long_convolution import LongConvolution
from orchestrator.errors import RequestError

Output = Literal["after_residual", "before_residual", "final_norm"]
"""What is taken of a layer: its output, what its feed-forward adds to its input, or its output
after the norm at the end of pre-norm models."""


class View(NamedTuple):
    """Which features of a model."""

    layer: int
    output: Output = "after_residual"


class Transformer(nn.Module):
    """The layers of a model up to one of them; nothing of the model itself is kept or changed."""

    def __init__(self, model: Any, layer: int, output: Output = "after_residual") -> None:
        """``model``: of transformers' HubertModel, Wav2Vec2Model or WavLMModel.

        Raises RequestError for an output that it does not have.
        """
        super().__init__()
        encoder, is_pre_norm = model.encoder, model.config.do_stable_layer_norm
        self.project = _Projection(model.feature_projection)
        self.position = _Position(encoder.pos_conv_embed)
        self.norm = nn.Identity() if is_pre_norm else deepcopy(encoder.layer_norm)
        self.layers = nn.ModuleList(_Layer(one, is_pre_norm) for one in encoder.layers[:layer])
        self.final_norm = deepcopy(encoder.layer_norm) if is_pre_norm else nn.Identity()
        self._output, self._is_pre_norm = output, is_pre_norm
        self._require(output)
        first = encoder.layers[0].attention
        self.bias = _PositionBias(first) if hasattr(first, "rel_attn_embed") else None

    def forward(self, frames_NC: Tensor, lengths: Lengths) -> Tensor:
        """``feats_ND`` in fp32; ``lengths``: frames of each wave, of which N is the sum."""
        hidden_ND, biases = self._begun(frames_NC, lengths)
        for layer in self._each():
            before_ND, added_ND = layer.parts(hidden_ND, lengths, biases)
            hidden_ND = layer.joined(before_ND, added_ND)
        return self._taken(self._output, hidden_ND, added_ND)

    def views(
        self, frames_NC: Tensor, lengths: Lengths, wanted: Collection[View] = ()
    ) -> Iterator[tuple[View, Tensor]]:
        """``feats_ND`` of the wanted views, or of every layer in every way that the model has.

        Layers above the highest wanted are not computed. Raises RequestError for an output that
        the model does not have.
        """
        for view in wanted:
            self._require(view.output)
        highest = max((view.layer for view in wanted), default=len(self.layers))
        hidden_ND, biases = self._begun(frames_NC, lengths)
        for number, layer in enumerate(self._each()[:highest], start=1):
            before_ND, added_ND = layer.parts(hidden_ND, lengths, biases)
            hidden_ND = layer.joined(before_ND, added_ND)
            for view in (View(number, output) for output in self._outputs):
                if not wanted or view in wanted:
                    yield view, self._taken(view.output, hidden_ND, added_ND)

    @property
    def _outputs(self) -> tuple[Output, ...]:
        of_any: tuple[Output, ...] = ("after_residual", "before_residual")
        return (*of_any, "final_norm") if self._is_pre_norm else of_any

    def _require(self, output: Output) -> None:
        if output not in self._outputs:
            raise RequestError(
                "encoder.output: the model norms after each layer and has no norm at its end; "
                "leave it out"
            )

    def _taken(self, output: Output, hidden_ND: Tensor, added_ND: Tensor) -> Tensor:
        """Of a layer, by what it gives to the next one and what its feed-forward has added."""
        if output == "before_residual":
            return added_ND.float()
        return self.final_norm(hidden_ND) if output == "final_norm" else hidden_ND

    def _each(self) -> list[_Layer]:
        return [layer for layer in self.layers if isinstance(layer, _Layer)]

    def _begun(self, frames_NC: Tensor, lengths: Lengths) -> tuple[Tensor, list[Tensor] | None]:
        """What the first layer is given, and WavLM's bias for each wave."""
        hidden_ND: Tensor = self.project(frames_NC)
        hidden_ND = self.norm(hidden_ND + self.position(hidden_ND, lengths))
        if self.bias is None:
            return hidden_ND, None
        if isinstance(lengths, Rows):
            raise TypeError("a position bias needs the length of each wave; give those")
        return hidden_ND, [self.bias(n) for n in lengths]


class _Projection(nn.Module):
    def __init__(self, of: Any) -> None:
        super().__init__()
        self.norm = deepcopy(getattr(of, "layer_norm", nn.Identity()))  # some HuBERTs have none
        self.linear = _Linear(of.projection)

    def forward(self, frames_NC: Tensor) -> Tensor:
        projected_ND: Tensor = self.linear(self.norm(frames_NC.float())).float()
        return projected_ND


class _Position(nn.Module):
    """The convolution that tells frames where they are."""

    def __init__(self, of: Any) -> None:
        super().__init__()
        self.norm = deepcopy(getattr(of, "batch_norm", None))
        conv = of.conv
        self.weight_OIK = nn.Parameter(conv.weight.detach().clone(), requires_grad=False)
        self.bias_O = nn.Parameter(conv.bias.detach().clone(), requires_grad=False)
        self.groups: int = conv.groups
        self.activation = of.activation
        self._by_frequency: LongConvolution | None = None

    def forward(self, hidden_ND: Tensor, lengths: Lengths) -> Tensor:
        if self.norm is not None:  # its statistics are fixed: one scale and shift a feature
            hidden_ND = self.norm(hidden_ND)
        hidden_ND = hidden_ND.to(self.weight_OIK.dtype)
        if not isinstance(lengths, Rows) and hidden_ND.device.type == "cpu":
            waves = torch.split(hidden_ND, list(lengths))
            out_ND = torch.cat([self._through_frequencies(wave_TD) for wave_TD in waves])
        else:
            out_ND = packed(self._directly(by_wave(hidden_ND, lengths)), lengths)
        positions_ND: Tensor = self.activation(out_ND + self.bias_O)
        return positions_ND

    def _directly(self, hidden_BTD: Tensor) -> Tensor:
        out_BDT = functional.conv1d(
            hidden_BTD.transpose(1, 2),
            self.weight_OIK,
            padding=self.weight_OIK.shape[2] // 2,
            groups=self.groups,
        )
        return out_BDT[..., : hidden_BTD.shape[1]].transpose(1, 2)

    def _through_frequencies(self, hidden_TD: Tensor) -> Tensor:
        if self._by_frequency is None:
            self._by_frequency = LongConvolution(self.weight_OIK, self.groups)
        return self._by_frequency(hidden_TD)


class _PositionBias(nn.Module):
    """WavLM's bias for each distance between two frames (arXiv 2110.13900), for all layers."""

    def __init__(self, of: Any) -> None:
        super().__init__()
        self.embed = deepcopy(of.rel_attn_embed)
        self._bucket_of = of._relative_positions_bucket  # transformers' rule: it knows no weights

    def forward(self, num_frames: int) -> Tensor:
        """``by_distance_HX`` of a `Bias`."""
        distances_X = torch.arange(1 - num_frames, num_frames, device=self.embed.weight.device)
        by_distance_XH: Tensor = self.embed(self._bucket_of(distances_X))
        return by_distance_XH.T


class _Layer(nn.Module):
    def __init__(self, of: Any, is_pre_norm: bool) -> None:
        super().__init__()
        self.is_pre_norm = is_pre_norm
        self.attention = _Attention(of.attention)
        self.norm, self.final_norm = deepcopy(of.layer_norm), deepcopy(of.final_layer_norm)
        self.widen = _Linear(of.feed_forward.intermediate_dense)
        self.activation = of.feed_forward.intermediate_act_fn
        self.narrow = _Linear(of.feed_forward.output_dense)

    def parts(
        self, hidden_ND: Tensor, lengths: Lengths, biases: Sequence[Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """What the feed-forward is given to add to, and what it adds."""
        if self.is_pre_norm:
            hidden_ND = hidden_ND + self.attention(self.norm(hidden_ND), lengths, biases)
            return hidden_ND, self._fed_forward(self.final_norm(hidden_ND))
        hidden_ND = self.norm(hidden_ND + self.attention(hidden_ND, lengths, biases))
        return hidden_ND, self._fed_forward(hidden_ND)

    def joined(self, before_ND: Tensor, added_ND: Tensor) -> Tensor:
        """The layer's output."""
        out_ND = before_ND + added_ND
        if not self.is_pre_norm:
            out_ND = self.final_norm(out_ND)
        return out_ND

    def _fed_forward(self, hidden_ND: Tensor) -> Tensor:
        out_ND: Tensor = self.narrow(self.activation(self.widen(hidden_ND)))
        return out_ND


class _Attention(nn.Module):
    def __init__(self, of: Any) -> None:
        super().__init__()
        self.num_heads: int = of.num_heads
        self.query_key_value = _Linear(of.q_proj, of.k_proj, of.v_proj)
        self.out = _Linear(of.out_proj)
        self.gate = _Gate(of) if hasattr(of, "gru_rel_pos_linear") else None

    def forward(
        self, hidden_ND: Tensor, lengths: Lengths, biases: Sequence[Tensor] | None
    ) -> Tensor:
        gated = None
        if self.gate and biases is not None and not isinstance(lengths, Rows):
            gated = self.gate(hidden_ND, lengths, biases)
        qkv_N3HE = self.query_key_value(hidden_ND).view(len(hidden_ND), 3, self.num_heads, -1)
        out_ND: Tensor = self.out(attended(qkv_N3HE, lengths, gated).flatten(1))
        return out_ND


class _Gate(nn.Module):
    """How far each frame of each head minds WavLM's bias."""

    def __init__(self, of: Any) -> None:
        super().__init__()
        self.num_heads: int = of.num_heads
        self.linear, self.constant = _Linear(of.gru_rel_pos_linear), deepcopy(of.gru_rel_pos_const)

    def forward(
        self, hidden_ND: Tensor, lengths: Sequence[int], biases: Sequence[Tensor]
    ) -> list[Bias]:
        heads_NHE = hidden_ND.view(len(hidden_ND), self.num_heads, -1)
        gates_NH24 = self.linear(heads_NHE).view(*heads_NHE.shape[:2], 2, 4)
        gates_NH2 = torch.sigmoid(gates_NH24.sum(3))
        first_NH, second_NH = gates_NH2.unbind(2)
        gate_NH = first_NH * (second_NH * self.constant.view(-1) - 1) + 2
        parts = torch.split(gate_NH, list(lengths))
        return [Bias(bias_HX, gate.T) for gate, bias_HX in zip(parts, biases, strict=True)]


class _Linear(nn.Module):
    """Linear layers of one input as one product, in the type of their weights."""

    def __init__(self, *layers: nn.Linear) -> None:
        super().__init__()
        weight_OI = torch.cat([layer.weight.detach() for layer in layers])
        bias_O = torch.cat([layer.bias.detach() for layer in layers])
        self.weight_OI = nn.Parameter(weight_OI, requires_grad=False)
        self.bias_O = nn.Parameter(bias_O, requires_grad=False)

    def forward(self, x_NI: Tensor) -> Tensor:
        return functional.linear(x_NI.to(self.weight_OI.dtype), self.weight_OI, self.bias_O)
