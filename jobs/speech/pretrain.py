"""Trains a small HuBERT from nothing by masked prediction (arXiv 2106.07447, section II).

In: utterances and ``recipe.encoder.pretrain``. Out: a folder in Hugging Face format, fp16.
Everything drawn at a step (crops, masks) is a function of (seed, iteration, step), so a training
killed anywhere resumes from its last state to the same bits, given the same number of threads.

Differs from fairseq's HuBERT: a linear softmax head instead of cosine similarity to code
embeddings; targets are fitted on all frames in the stream; the loss on unmasked frames has a weight
above 0, without which small models learn nothing for a long time; LayerNorm after every
convolution, whose frames do not depend on a batch's padding.

Shapes: B crops, S samples at 16 kHz, T frames, K clusters, D features.
"""

from __future__ import annotations

import hashlib
import io
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import HubertConfig, HubertModel

from jobs.audio.decode import Wave
from jobs.speech import targets
from orchestrator.ledger.storage import Storage
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Pretrain, PretrainIteration

LOG_EVERY_STEPS = 50
SAVE_EVERY_S = 240.0
_ADAM_BETAS = (0.9, 0.98)
_ADAM_EPS = 1e-6
_MAX_GRAD_NORM = 1.0
_FINAL_LR_SHARE = 0.1
_POSITION_KERNEL = 32
_POSITION_GROUPS = 16
_log = logging.getLogger(__name__)

Integers = npt.NDArray[np.int64]
Pause = Callable[[int, int], None]
"""Called with (steps done, steps in all) between steps; may raise to end the training."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one step sees."""

    wav_BS: Tensor
    is_masked_BT: Tensor
    targets_BT: Tensor


class Learner(nn.Module):
    """A HuBERT and the head that names each frame's cluster."""

    def __init__(self, config: HubertConfig, num_clusters: int) -> None:
        super().__init__()
        self.hubert = HubertModel(config)
        self.head = nn.Linear(config.hidden_size, num_clusters)

    def forward(self, batch: Batch) -> Tensor:
        """``logits_BTK``."""
        hidden_BTD = self.hubert(
            batch.wav_BS, mask_time_indices=batch.is_masked_BT
        ).last_hidden_state
        return self.head(hidden_BTD)


def hubert_config(spec: Pretrain) -> HubertConfig:
    """The architecture: pre-LN, normalised per frame, so that padding changes no valid frame."""
    return HubertConfig(
        hidden_size=spec.hidden_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        intermediate_size=spec.intermediate_size,
        conv_dim=list(spec.conv_dim),
        conv_kernel=list(spec.conv_kernel),
        conv_stride=list(spec.conv_stride),
        num_conv_pos_embeddings=_POSITION_KERNEL,
        num_conv_pos_embedding_groups=gcd(spec.hidden_size, _POSITION_GROUPS),
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=False,
        feat_proj_dropout=0.0,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
    )


def join(wavs: Iterable[Wave], grid: targets.Grid) -> targets.Samples:
    """One stream of all utterances, each trimmed to whole hops: crops of it need no padding."""
    parts = [
        np.round(wav_S[: len(wav_S) // grid.hop * grid.hop].clip(-1, 1) * 32_767).astype(np.int16)
        for wav_S in wavs
    ]
    return np.concatenate(parts)


def train(
    spec: Pretrain, stream_S: targets.Samples, work: Storage, *, pause: Pause | None = None
) -> HubertModel:
    """The model of the last iteration.

    ``work`` keeps states and targets below ``pretrain/``; a killed training goes on from there.
    """
    grid = targets.grid_of(spec.conv_kernel, spec.conv_stride)
    steps = sum(i.steps for i in spec.iterations)
    done, model = 0, None
    for number, iteration in enumerate(spec.iterations, start=1):
        trainer = Trainer(spec=spec, number=number, work=work)
        if not trainer.load():
            targets_T = _targets(iteration, stream_S, grid, model, work, number, spec.seed)
            trainer.run(stream_S, targets_T, pause=pause, done_before=done, steps_in_all=steps)
        done, model = done + iteration.steps, trainer.learner.hubert.eval()
    if model is None:
        raise AssertionError("Pretrain.iterations is never empty")
    return model


class Trainer:
    """One iteration: its weights, its optimiser, its place."""

    def __init__(self, *, spec: Pretrain, number: int, work: Storage) -> None:
        self._spec, self._number, self._work = spec, number, work
        self._iteration = spec.iterations[number - 1]
        torch.manual_seed(_derived_seed(spec.seed, number))
        self.learner = Learner(hubert_config(spec), self._iteration.num_clusters)
        self._optimizer = torch.optim.Adam(
            self.learner.parameters(), lr=spec.lr, betas=_ADAM_BETAS, eps=_ADAM_EPS
        )
        self._step = 0

    def load(self) -> bool:
        """Take up the last state, if there is one; whether the iteration is done."""
        if self._work.exists(self._state_path):
            state = torch.load(
                io.BytesIO(self._work.read_bytes(self._state_path)), weights_only=True
            )
            self.learner.load_state_dict(state["learner"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._step = state["step"]
            _log.info("iteration %d resumes at step %d", self._number, self._step)
        return self._step >= self._iteration.steps

    def run(
        self,
        stream_S: targets.Samples,
        targets_T: Integers,
        *,
        pause: Pause | None,
        done_before: int,
        steps_in_all: int,
    ) -> None:
        """Train to the end of the iteration, saving a state every few minutes and at the end."""
        draw = CropDraw(
            spec=self._spec, number=self._number, stream_S=stream_S, targets_T=targets_T
        )
        meter, saved_at = Meter(self._spec), time.monotonic()
        self.learner.train()
        while self._step < self._iteration.steps:
            meter.add(self._advance(draw.batch(self._step)))
            self._step += 1
            if pause:
                pause(done_before + self._step, steps_in_all)
            if self._step % LOG_EVERY_STEPS == 0:
                _log.info(
                    "iteration %d step %d/%d %s",
                    self._number,
                    self._step,
                    self._iteration.steps,
                    meter.report(),
                )
            if time.monotonic() - saved_at >= SAVE_EVERY_S:
                self._save()
                saved_at = time.monotonic()
        self._save()

    @property
    def _state_path(self) -> str:
        return f"pretrain/iteration-{self._number}.state"

    def _save(self) -> None:
        buffer = io.BytesIO()
        optimizer = self._optimizer.state_dict()
        torch.save(
            {"step": self._step, "learner": self.learner.state_dict(), "optimizer": optimizer},
            buffer,
        )
        self._work.replace(self._state_path, buffer.getvalue())

    def _advance(self, batch: Batch) -> Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = self._spec.lr * lr_share(
                self._step, self._iteration.steps, self._spec.warmup_steps
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss, figures = _loss(self.learner(batch), batch, self._spec.unmasked_weight)
        loss.backward()
        nn.utils.clip_grad_norm_(self.learner.parameters(), _MAX_GRAD_NORM)
        self._optimizer.step()
        return figures


@dataclass(frozen=True, kw_only=True)
class CropDraw:
    """Draws the crops and masks of each step."""

    spec: Pretrain
    number: int
    stream_S: targets.Samples
    targets_T: Integers

    def batch(self, step: int) -> Batch:
        """The batch of a step: a pure function of (seed, iteration, step)."""
        grid = targets.grid_of(self.spec.conv_kernel, self.spec.conv_stride)
        num_frames = grid.num_frames(int(self.spec.crop_s * SAMPLE_RATE_HZ))
        rng = np.random.default_rng((self.spec.seed, self.number, step))
        firsts = rng.integers(len(self.targets_T) - num_frames + 1, size=self.spec.batch_size)
        wav_BS = [
            targets.to_float(
                self.stream_S[t * grid.hop : t * grid.hop + grid.num_samples(num_frames)]
            )
            for t in firsts
        ]
        return Batch(
            wav_BS=torch.stack(wav_BS),
            is_masked_BT=torch.from_numpy(draw_masks(rng, self.spec, num_frames)),
            targets_BT=torch.from_numpy(
                np.stack([self.targets_T[t : t + num_frames] for t in firsts])
            ),
        )


def draw_masks(rng: np.random.Generator, spec: Pretrain, num_frames: int) -> npt.NDArray[np.bool_]:
    """``is_masked_BT``: each frame starts a span of ``mask_length`` by chance ``mask_prob``."""
    starts_BT = rng.random((spec.batch_size, num_frames)) < spec.mask_prob
    is_masked_BT = starts_BT.copy()
    for shift in range(1, min(spec.mask_length, num_frames)):
        is_masked_BT[:, shift:] |= starts_BT[:, :-shift]
    return is_masked_BT


def lr_share(step: int, steps: int, warmup_steps: int) -> float:
    """The share of the peak learning rate at a step: linear up, then linear down to a tenth."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    passed = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 1 - (1 - _FINAL_LR_SHARE) * passed


class Meter:
    """Means since the last report, and speed."""

    def __init__(self, spec: Pretrain) -> None:
        self._step_audio_s = spec.batch_size * spec.crop_s
        self._reset()

    def _reset(self) -> None:
        self._figures: list[Tensor] = []
        self._since = time.monotonic()

    def add(self, figures: Tensor) -> None:
        """Count one step."""
        self._figures.append(figures)

    def report(self) -> str:
        """One line on the steps since the last report."""
        masked, unmasked, accuracy = torch.stack(self._figures).nanmean(0).tolist()
        speed = len(self._figures) * self._step_audio_s / (time.monotonic() - self._since)
        self._reset()
        return (
            f"loss masked {masked:.3f} unmasked {unmasked:.3f} "
            f"masked accuracy {accuracy:.3f} audio s/s {speed:.1f}"
        )


def _loss(logits_BTK: Tensor, batch: Batch, unmasked_weight: float) -> tuple[Tensor, Tensor]:
    """The loss, and (masked loss, unmasked loss, masked accuracy)."""
    nll_BT = nn.functional.cross_entropy(
        logits_BTK.transpose(1, 2), batch.targets_BT, reduction="none"
    )
    masked, unmasked = batch.is_masked_BT.float(), (~batch.is_masked_BT).float()
    # A batch may draw no mask, or nothing else: the clamp keeps that half at 0 instead of NaN.
    masked_loss = (nll_BT * masked).sum() / masked.sum().clamp(min=1)
    unmasked_loss = (nll_BT * unmasked).sum() / unmasked.sum().clamp(min=1)
    with torch.no_grad():
        right_BT = (logits_BTK.argmax(2) == batch.targets_BT).float()
        accuracy = (right_BT * masked).sum() / masked.sum().clamp(min=1)
        figures = torch.stack((masked_loss.detach(), unmasked_loss.detach(), accuracy))
    return masked_loss + unmasked_weight * unmasked_loss, figures


def layer_features(model: HubertModel, layer: int) -> targets.Features:
    """A function from ``wav_S`` to the layer's ``feats_TD``."""

    def compute(wav_S: Tensor) -> Tensor:
        return model(wav_S[None], output_hidden_states=True).hidden_states[layer][0]

    return compute


def _targets(
    iteration: PretrainIteration,
    stream_S: targets.Samples,
    grid: targets.Grid,
    model: HubertModel | None,
    work: Storage,
    number: int,
    seed: int,
) -> Integers:
    """The stream's targets, fitted once: a resumed training reads what the first attempt wrote."""
    path = f"pretrain/targets-{number}.npy"
    if not work.exists(path):
        if iteration.targets == "mfcc" or model is None:
            feats_TD = targets.standardise(targets.frames_of(stream_S, grid, targets.mfcc(grid)))
        else:
            feats_TD = targets.frames_of(stream_S, grid, layer_features(model, iteration.targets))
        centroids_KD = targets.fit(feats_TD, iteration.num_clusters, _derived_seed(seed, number))
        buffer = io.BytesIO()
        np.save(buffer, targets.label(feats_TD, centroids_KD).astype(np.uint16), allow_pickle=False)
        work.replace(path, buffer.getvalue())
        _log.info(
            "iteration %d: %d targets for %d frames", number, iteration.num_clusters, len(feats_TD)
        )
    return np.load(io.BytesIO(work.read_bytes(path)), allow_pickle=False).astype(np.int64)


def save(model: HubertModel, folder: Path) -> str:
    """Write ``config.json`` and ``model.safetensors`` in fp16, and return the weights' SHA-256."""
    model.to(torch.float16).save_pretrained(folder)
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def summary(spec: Pretrain, stream_S: targets.Samples) -> dict[str, Any]:
    """Facts of a training, none of them a timing."""
    return {
        "hours": round(len(stream_S) / SAMPLE_RATE_HZ / 3600, 3),
        "iterations": [i.model_dump() for i in spec.iterations],
        "threads": torch.get_num_threads(),
    }


def _derived_seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"pretrain {seed} {number}".encode()).digest()[:4], "big")
