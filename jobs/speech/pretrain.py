"""A HuBERT's masked prediction (arXiv 2106.07447, section II) as a task of the training runtime.

In: the corpus's audio, the labels of one iteration's targets. Out: ``config.json`` and
``model.safetensors`` in Hugging Face format, fp16. A sample is a crop with its masks, both a
function of (seed, iteration, number of the sample).

Differs from fairseq's HuBERT: a linear softmax head instead of cosine similarity to code
embeddings; targets are fitted on all frames of the audio; the loss on unmasked frames has a weight
above 0, without which small models learn nothing for a long time; LayerNorm after every
convolution, whose frames do not depend on a batch's padding; each crop weighs the same in the loss,
however many of its frames are masked.

Shapes: B crops, S samples at 16 kHz, T frames, K clusters, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import HubertConfig, HubertModel

from jobs.audio.corpus_tables import CorpusTables
from jobs.audio.roots import Root
from jobs.speech import sample, targets
from jobs.speech.utterances import WaveReader
from jobs.training.group import RankGroup
from jobs.training.rank import RankConfig
from jobs.training.task import DTYPES, LossOf, MicroBatch, Samples, Tick
from orchestrator.errors import DataError
from orchestrator.ledger.storage import Storage
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.model import Spec
from orchestrator.spec.recipe import Optimizer, Pretrain

TASK = "jobs.speech.pretrain:MaskedPrediction"
OPTIMIZER = Optimizer(betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0, grad_clip=1.0)
"""Adam's settings but for the learning rate."""
_FINAL_LR_SHARE = 0.1
_POSITION_KERNEL = 32
_POSITION_GROUPS = 16


class MaskedPredictionSpec(Spec):
    """What a HuBERT's training is told besides what every training has."""

    pretrain: Pretrain
    """The recipe's ``encoder.pretrain``."""
    number: int
    """Of the iteration, from 1 on."""
    corpus_url: str
    """Folder of the corpus artifact."""
    targets_url: str
    """Folder of the iteration's targets."""
    places: str
    """The corpus' table of where recordings are."""
    roots: dict[str, Root]
    """Where each source lies here."""


class Learner(nn.Module):
    """A HuBERT and the head that names each frame's cluster."""

    def __init__(self, config: HubertConfig, num_clusters: int) -> None:
        super().__init__()
        self.hubert = HubertModel(config)
        self.head = nn.Linear(config.hidden_size, num_clusters)

    def forward(self, wav_BS: Tensor, is_masked_BT: Tensor) -> Tensor:
        """``logits_BTK``."""
        wav_BS = wav_BS.to(self.head.weight.dtype)
        hidden_BTD = self.hubert(wav_BS, mask_time_indices=is_masked_BT).last_hidden_state
        logits_BTK: Tensor = self.head(hidden_BTD)
        return logits_BTK


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


class Crops:
    """Crops and masks of labelled audio, each a pure function of (seed, iteration, sample)."""

    def __init__(
        self,
        spec: Pretrain,
        number: int,
        blocks: targets.AudioBlocks,
        stream_S: targets.Samples,
        labels_T: targets.Labels,
    ) -> None:
        """``stream_S`` and ``labels_T``: the samples and the labels of all blocks, in their order.

        Raises DataError when no block holds a crop.
        """
        self._spec, self._number, self._grid = spec, number, blocks.grid
        self._stream_S, self._labels_T = stream_S, labels_T
        self.num_frames = blocks.grid.num_frames(int(spec.crop_s * SAMPLE_RATE_HZ))
        choices = np.maximum(blocks.num_frames - self.num_frames + 1, 0)
        self._choices_end = np.cumsum(choices)
        self._first_sample = np.cumsum(blocks.num_samples) - blocks.num_samples
        self._first_label = np.cumsum(blocks.num_frames) - blocks.num_frames
        if not self._choices_end[-1]:
            raise DataError(
                f"encoder.pretrain.crop_s: no stretch of the corpus's audio lasts {spec.crop_s:g} "
                "s; lower it or add audio"
            )

    def __call__(self, sample: int) -> tuple[Tensor, Tensor, Tensor]:
        """``wav_S``, ``is_masked_T`` and ``targets_T`` of a sample."""
        rng = np.random.default_rng((self._spec.seed, self._number, sample))
        drawn = int(rng.integers(self._choices_end[-1]))
        block = int(np.searchsorted(self._choices_end, drawn, side="right"))
        first = drawn - int(self._choices_end[block - 1] if block else 0)
        start_sample = int(self._first_sample[block]) + first * self._grid.hop
        start_label = int(self._first_label[block]) + first
        crop_S = self._stream_S[
            start_sample : start_sample + self._grid.num_samples(self.num_frames)
        ]
        labels_T = self._labels_T[start_label : start_label + self.num_frames]
        return (
            targets.to_float(crop_S),
            torch.from_numpy(draw_mask(rng, self._spec, self.num_frames)),
            torch.from_numpy(labels_T.astype(np.int64)),
        )


def draw_mask(rng: np.random.Generator, spec: Pretrain, num_frames: int) -> npt.NDArray[np.bool_]:
    """``is_masked_T``: each frame starts a span of ``mask_length`` by chance ``mask_prob``."""
    starts_T = rng.random(num_frames) < spec.mask_prob
    is_masked_T = starts_T.copy()
    for shift in range(1, min(spec.mask_length, num_frames)):
        is_masked_T[shift:] |= starts_T[:-shift]
    return is_masked_T


def masked_loss(
    logits_BTK: Tensor, is_masked_BT: Tensor, targets_BT: Tensor, unmasked_weight: float
) -> Tensor:
    """Mean over crops of the mean NLL of masked frames, and by its weight of the others."""
    nll_BT = nn.functional.cross_entropy(
        logits_BTK.transpose(1, 2).float(), targets_BT, reduction="none"
    )
    masked_BT, unmasked_BT = is_masked_BT.float(), (~is_masked_BT).float()
    # A crop may draw no mask, or nothing else: the clamp keeps that half at 0 instead of NaN.
    masked_B = (nll_BT * masked_BT).sum(1) / masked_BT.sum(1).clamp(min=1)
    unmasked_B = (nll_BT * unmasked_BT).sum(1) / unmasked_BT.sum(1).clamp(min=1)
    return (masked_B + unmasked_weight * unmasked_B).mean()


def lr_share(step: int, steps: int, warmup_steps: int) -> float:
    """The share of the peak learning rate at step 1, 2, ...: linear up, then down to a tenth."""
    if step <= warmup_steps:
        return step / warmup_steps
    passed = (step - 1 - warmup_steps) / max(1, steps - warmup_steps)
    return 1 - (1 - _FINAL_LR_SHARE) * passed


class MaskedPrediction:
    """A `jobs.training.task.Task`: one iteration of HuBERT pretraining."""

    unit = "frames"

    def __init__(self, config: RankConfig, group: RankGroup) -> None:
        self._config = config
        self._spec = spec = MaskedPredictionSpec.model_validate(config.spec)
        tables = CorpusTables(Storage(spec.corpus_url), spec.places)
        utterances = sample.read(Storage(spec.targets_url), tables)
        self._blocks = targets.AudioBlocks.of(utterances, spec.pretrain)
        stream_S, labels_T = node_copy(spec, self._blocks, group, Path(config.scratch) / "audio")
        self._crops = Crops(spec.pretrain, spec.number, self._blocks, stream_S, labels_T)

    @property
    def units_per_sample(self) -> int:
        """Frames of a crop."""
        return self._crops.num_frames

    @property
    def num_samples(self) -> int:
        """Crops of the whole training: each is drawn anew."""
        return self._config.settings.steps * self._config.settings.global_batch

    def build_model(self) -> nn.Module:
        """A HuBERT of new weights."""
        spec = self._spec
        name = f"pretrain {spec.pretrain.seed} {spec.number}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big"))
        return self._new_learner().to(DTYPES[spec.pretrain.precision])

    def build_shell(self) -> nn.Module:
        """The same: it is small."""
        return self.build_model()

    def _new_learner(self) -> Learner:
        spec = self._spec
        num_clusters = spec.pretrain.iterations[spec.number - 1].num_clusters
        return Learner(hubert_config(spec.pretrain), num_clusters)

    def flops_per_sample(self, model: nn.Module) -> float:  # noqa: ARG002
        """Not known."""
        return 0.0

    def learning_rate(self, step: int) -> float:
        """Linear warm-up and decay."""
        settings = self._config.settings
        share = lr_share(step, settings.steps, self._spec.pretrain.warmup_steps)
        return settings.optimizer.lr * share

    def read(self, samples: Samples) -> MicroBatch:
        """``wav_BS``, ``is_masked_BT`` and ``targets_BT`` of some crops."""
        crops = [self._crops(int(sample)) for sample in samples]
        return tuple(torch.stack(parts) for parts in zip(*crops, strict=True))

    def loss(self, module: nn.Module, micro_batch: MicroBatch) -> Tensor:
        """The loss of masked prediction."""
        wav_BS, is_masked_BT, targets_BT = micro_batch
        logits_BTK = module(wav_BS, is_masked_BT)
        weight = self._spec.pretrain.unmasked_weight
        return masked_loss(logits_BTK, is_masked_BT, targets_BT, weight)

    def validate(self, loss_of: LossOf, group: RankGroup, tick: Tick) -> None:  # noqa: ARG002
        """No audio is held out."""
        return

    def publish(self, model: nn.Module, state: Mapping[str, Tensor], folder: Path) -> None:  # noqa: ARG002
        """Write the HuBERT without its head."""
        learner = self._new_learner()
        learner.load_state_dict(dict(state))
        save(learner.hubert, folder)

    def facts(self, model: nn.Module) -> dict[str, Any]:
        """Sizes of the model and of its data."""
        num_parameters = sum(p.numel() for p in model.parameters())
        return {"num_parameters": num_parameters, "hours": round(self._blocks.hours, 3)}


def node_copy(
    spec: MaskedPredictionSpec, blocks: targets.AudioBlocks, group: RankGroup, folder: Path
) -> tuple[targets.Samples, targets.Labels]:
    """All audio and all labels, mapped from files that a node's first rank makes; collective."""
    stream, labels = folder / "samples.int16", folder / "labels.uint16"
    if group.info.local_rank == 0 and not labels.exists():
        folder.mkdir(parents=True, exist_ok=True)
        reader, store = WaveReader(spec.roots), Storage(spec.targets_url)
        with stream.open("wb") as samples_file:
            for block in blocks.blocks:
                targets.read_block(block, reader, blocks.grid).tofile(samples_file)
                group.tick("loading")
        aside = folder / "labels.part"
        with aside.open("wb") as labels_file:
            for number in range(len(blocks.blocks)):
                targets.read_labels(store, number).tofile(labels_file)
                group.tick("loading")
        aside.rename(labels)  # last: it says that the samples are whole too
    group.barrier()
    return (
        np.memmap(stream, np.int16, mode="r", shape=(int(blocks.num_samples.sum()),)),
        np.memmap(labels, np.uint16, mode="r", shape=(int(blocks.num_frames.sum()),)),
    )


def save(model: HubertModel, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` in fp16."""
    model.half().save_pretrained(folder)
