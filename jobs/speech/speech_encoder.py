"""Runs an encoder of the HuBERT family so that every wave gets the features it would get alone.

In: waves of mixed length. Out: ``feats_TD`` per wave, equal to transformers'
``hidden_states[layer]`` at batch size 1 for HuBERT, wav2vec 2.0 and WavLM, base and large, with
whatever norms they have. Stock batched inference is not: norms over time, BatchNorm, convolutions
and attention see padding. Here nothing is padded (`jobs.speech.front_end`,
`jobs.speech.transformer`).

A CPU takes waves in turn. An accelerator takes a batch at once, from pinned memory, and on request
as a recorded graph (`jobs.speech.replays`).

Shapes: B waves, S samples at 16 kHz, T frames, D features.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from jobs.speech.attention import Rows
from jobs.speech.front_end import FrontEnd
from jobs.speech.replays import Bucket, Record, Replays, bucket_of
from jobs.speech.transformer import Output, Transformer, View
from jobs.weights import load_whole
from orchestrator.errors import DEVICE_OOM, HOST_OOM, RequestError
from orchestrator.plan.model_config import ENCODERS
from orchestrator.quantities import SAMPLE_RATE_HZ

Wave = npt.NDArray[np.float32]
Precision = Literal["fp32", "bf16", "fp16"]
Answer = TypeVar("Answer")

MAX_PADDED_SAMPLES = {"cuda": 60 * SAMPLE_RATE_HZ, "cpu": 16 * SAMPLE_RATE_HZ}
"""Samples of one batch by the kind of device, each wave counted as long as the longest, which it is
on an accelerator. Batches decide rounding."""

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
log = logging.getLogger(__name__)
_OTHERS_SHARE = 0.1
"""Of a device's memory: a driver and contexts of processes take less."""
_WAVE_EPS = 1e-7  # of the zero-mean, unit-variance rule in transformers' Wav2Vec2FeatureExtractor


class SpeechEncoder:
    """An encoder cut after one layer, on one device."""

    def __init__(
        self,
        model: Any,
        layer: int,
        *,
        output: Output = "after_residual",
        device: torch.device | None = None,
        precision: Precision = "fp32",
        normalize_waveform: bool = False,
        on_cpu: Callable[[], SpeechEncoder] | None = None,
        all_at_once: bool | None = None,
        record: Record | None = None,
    ) -> None:
        """``model``: of transformers' HubertModel, Wav2Vec2Model or WavLMModel; it stays as it is.

        ``on_cpu`` loads the same encoder there, to tell a wave's fault from a device's.
        ``all_at_once``: how a batch is taken; by default as suits the device. ``record``: batches
        are replayed in buckets of their lengths, but for WavLM's; by default none is.
        """
        self.device = device or torch.device("cpu")
        self.dim: int = model.config.hidden_size
        self._view = View(layer, output)
        self._normalize_waveform = normalize_waveform
        self._on_cpu = on_cpu or (lambda: self)
        self._too_many_samples: float = math.inf
        """Of a batch, each wave as long as the longest: the fewest that did not fit the memory."""
        self._front_end = FrontEnd(model.feature_extractor.conv_layers)
        self._transformer = Transformer(model, layer, output)
        for part in (self._front_end, self._transformer):
            part.eval().requires_grad_(False).to(self.device)
            _compute_in(_TYPES[precision], part)
        self.grid = self._front_end.grid
        self._all_at_once = self.device.type != "cpu" if all_at_once is None else all_at_once
        can_replay = record is not None and self._transformer.bias is None
        self._replays = Replays(self._of_rows, record) if can_replay else None
        if self.device.type == "cuda":
            _forbid_inexact_kernels()

    @classmethod
    def load(
        cls,
        folder: Path,
        layer: int | None,
        *,
        output: Output = "after_residual",
        device: torch.device | None = None,
        precision: Precision = "fp32",
        on_cpu: Callable[[], SpeechEncoder] | None = None,
    ) -> SpeechEncoder:
        """The encoder in ``folder`` up to ``layer``, or up to its last.

        Reads config.json, model.safetensors and, where it is there, encoder.json.
        Raises RequestError when it has no such layer, or other weights than its config describes.
        """
        import transformers  # takes seconds, which drivers need not spend

        config = json.loads((folder / "config.json").read_text())
        num_layers = transformers.AutoConfig.from_pretrained(folder).num_hidden_layers
        layer = num_layers if layer is None else layer
        if not 1 <= layer <= num_layers:
            raise RequestError(
                f"encoder.layer: {layer} is no layer of {folder}; use 1..{num_layers}"
            )
        notes = folder / "encoder.json"
        wants_norm = notes.exists() and json.loads(notes.read_text()).get("normalize_waveform")
        model = load_whole(
            getattr(transformers, f"{ENCODERS[config['model_type']]}Model"),
            folder,
            where="encoder.model",
            num_hidden_layers=layer,  # deeper layers cost time and memory, and change nothing
            dtype=torch.float32,
            use_safetensors=True,
        )
        return cls(
            model,
            layer,
            output=output,
            device=device,
            precision=precision,
            normalize_waveform=bool(wants_norm),
            on_cpu=on_cpu,
        )

    @property
    def max_padded_samples(self) -> int:
        """Of a batch."""
        return MAX_PADDED_SAMPLES[self.device.type]

    def features(self, waves: Sequence[Wave]) -> list[Tensor]:
        """``feats_TD`` of each wave in fp32, on the encoder's device, as if it were alone.

        They hold NaN or infinity only where they do on a CPU too. Raises FloatingPointError where
        they do on this device alone, RequestError for a wave that alone does not fit its memory.
        """
        return self.features_of(waves, [self._view])[self._view]

    def features_of(
        self, waves: Sequence[Wave], wanted: Sequence[View]
    ) -> dict[View, list[Tensor]]:
        """`features` of several views up to the layer: those of an encoder for each view alone.

        Layers above the highest wanted are not computed.
        """
        feats = self._features(waves, wanted)
        for view, own in feats.items():
            if own and not is_finite(torch.cat(own)):
                for wav_S, feats_TD in zip(waves, own, strict=True):
                    if not is_finite(feats_TD):
                        self._require_so_on_cpu(wav_S, view)
        return feats

    def views(
        self, waves: Sequence[Wave], measured: Callable[[Tensor], Answer]
    ) -> list[dict[View, Answer]]:
        """What is measured of ``feats_ND`` of every view up to the layer: of all waves together.

        Of a part of the waves after the other where memory is too small for all at once; of no view
        where no wave of a part holds a frame. Raises RequestError for a wave that alone does not
        fit.
        """
        return self._in_parts(waves, lambda some: self._measured(some, measured))

    def _measured(
        self, waves: Sequence[Wave], measured: Callable[[Tensor], Answer]
    ) -> dict[View, Answer]:
        heard = [self._scaled(wav_S) for wav_S in waves if self.grid.num_frames(len(wav_S))]
        if not heard:
            return {}
        with torch.inference_mode():
            given = self._frames_of([torch.from_numpy(wav_S) for wav_S in heard])
            return {view: measured(feats_ND) for view, feats_ND in self._transformer.views(*given)}

    def _require_so_on_cpu(self, wav_S: Wave, view: View) -> None:
        (again_TD,) = self._on_cpu()._features([wav_S], [view])[view]
        if is_finite(again_TD):
            raise FloatingPointError(
                f"{self.device.type}: features of a wave hold NaN or infinity that a second try on "
                "a CPU does not find"
            )

    def _features(self, waves: Sequence[Wave], wanted: Sequence[View]) -> dict[View, list[Tensor]]:
        parts = self._in_parts(waves, lambda some: self._at_once(some, wanted))
        return {view: [feats_TD for part in parts for feats_TD in part[view]] for view in wanted}

    def _in_parts(
        self, waves: Sequence[Wave], act: Callable[[Sequence[Wave]], Answer]
    ) -> list[Answer]:
        """Of all waves at once, or of each half of them where memory is too small for that."""
        num_samples = len(waves) * max((len(wav_S) for wav_S in waves), default=0)
        if len(waves) < 2 or num_samples < self._too_many_samples:
            try:
                return [act(waves)]
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                has_recorded = self._replays is not None and self._replays.forget()
                if len(waves) == 1 and not has_recorded:
                    if not has_device_alone(self.device):  # another time there may be room
                        raise
                    raise RequestError(_too_long(waves[0], self.device)) from error
            # Only here is the error gone, and with it what its traceback held of the batch.
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if has_recorded:
                return self._in_parts(waves, act)
            self._too_many_samples = num_samples
            log.warning("%s: no memory for a batch of %d waves; halved", self.device, len(waves))
        half = len(waves) // 2
        return [*self._in_parts(waves[:half], act), *self._in_parts(waves[half:], act)]

    def _at_once(self, waves: Sequence[Wave], wanted: Sequence[View]) -> dict[View, list[Tensor]]:
        lengths = [self.grid.num_frames(len(wav_S)) for wav_S in waves]
        heard = [self._scaled(wav_S) for wav_S, n in zip(waves, lengths, strict=True) if n]
        if not heard:
            nothing_TD = torch.zeros(0, self.dim, device=self.device)
            return {view: [nothing_TD] * len(waves) for view in wanted}
        with torch.inference_mode():
            found = self._of_heard([torch.from_numpy(wav_S) for wav_S in heard], wanted)
            return {view: list(torch.split(feats_ND, lengths)) for view, feats_ND in found}

    def _of_heard(
        self, waves: Sequence[Tensor], wanted: Sequence[View]
    ) -> Iterable[tuple[View, Tensor]]:
        """``feats_ND`` of waves that hold a frame each."""
        if self._all_at_once and self._replays and list(wanted) == [self._view]:
            samples = [len(wav_S) for wav_S in waves]
            if bucket := bucket_of(samples, self.grid, self.max_padded_samples):
                return [(self._view, self._replayed(self._replays, waves, bucket))]
        return self._transformer.views(*self._frames_of(waves), wanted)

    def _frames_of(self, waves: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """``frames_NC`` of the front end, and how many of them are each wave's."""
        samples = [len(wav_S) for wav_S in waves]
        frames = [self.grid.num_frames(n) for n in samples]
        if not self._all_at_once:
            return self._front_end.one_by_one(waves), frames
        wav_BS = self._brought(waves, Bucket(len(waves), max(samples)))
        return self._front_end.together(wav_BS, samples), frames

    def _brought(self, waves: Sequence[Tensor], bucket: Bucket) -> Tensor:
        """Waves as rows on the device, by way of memory that it reads by itself."""
        wav_BS = torch.zeros(bucket, pin_memory=self.device.type == "cuda")
        for row_S, wav_S in zip(wav_BS, waves, strict=False):
            row_S[: len(wav_S)] = wav_S
        return wav_BS.to(self.device, non_blocking=True)

    def _replayed(self, replays: Replays, waves: Sequence[Tensor], bucket: Bucket) -> Tensor:
        """Rows that have no wave are as long as the bucket, and silent."""
        samples = [len(wav_S) for wav_S in waves]
        lengths_B = torch.tensor(samples + [bucket.num_samples] * (bucket.num_rows - len(waves)))
        feats_BTD = replays(self._brought(waves, bucket), lengths_B.to(self.device))
        frames = [self.grid.num_frames(n) for n in samples]
        return torch.cat([row[:n] for row, n in zip(feats_BTD, frames, strict=False)])

    def _of_rows(self, wav_BS: Tensor, lengths_B: Tensor) -> Tensor:
        """``feats_BTD``, of which each wave's frames come first in its row."""
        frames_NC = self._front_end.in_rows(wav_BS, lengths_B)
        num_frames_B = (lengths_B - self.grid.field) // self.grid.hop + 1
        rows = Rows(len(frames_NC) // len(wav_BS), num_frames_B)
        feats_ND: Tensor = self._transformer(frames_NC, rows)
        return feats_ND.view(len(wav_BS), rows.num_frames, -1)

    def _scaled(self, wav_S: Wave) -> Wave:
        return np.ascontiguousarray(_standardized(wav_S) if self._normalize_waveform else wav_S)


def is_finite(feats_TD: Tensor) -> bool:
    """Whether all features are numbers: one sum is none when one of them is not."""
    return bool(feats_TD.sum(dtype=torch.float64).isfinite())


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocator of the device, or of the host, had nothing left."""
    said = f"{type(error).__name__}: {error}"
    return bool(re.search(DEVICE_OOM, said) or re.search(HOST_OOM, said))


def has_device_alone(device: torch.device) -> bool:
    """Whether hardly anybody else takes memory of an accelerator; a CPU's is everybody's."""
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device) < _OTHERS_SHARE * total


def _too_long(wav_S: Wave, device: torch.device) -> str:
    return (
        f"corpus.windows.max_s: a window of {len(wav_S) / SAMPLE_RATE_HZ:.1f} s does not fit the "
        f"memory of {device} even alone; lower it, or let fewer workers share a device"
    )


def _compute_in(dtype: torch.dtype, part: nn.Module) -> None:
    """Give weights of products their type; norms, and what is added up over layers, stay fp32."""
    for module in part.modules():
        if not isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm1d):
            for weight in module.parameters(recurse=False):
                weight.data = weight.data.to(dtype)


def _standardized(wav_S: Wave) -> Wave:
    scaled_S: Wave = (wav_S - wav_S.mean()) / np.sqrt(wav_S.var() + _WAVE_EPS)
    return scaled_S.astype(np.float32)


def _forbid_inexact_kernels() -> None:
    """Units must not depend on the kernel cuDNN finds fastest today, nor on TF32's rounding."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
