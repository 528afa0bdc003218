"""Features of a sample of the corpus, held block by block in the memory of the pool's workers.

In: a sample of utterances, cut into blocks that are a pure function of it. Out: what
`jobs.speech.lloyd` asks of each block, in the order of blocks, whichever worker finishes first.

Shapes: N frames, D features, K clusters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from torch import Tensor

from jobs.audio.roots import Root
from jobs.speech.lloyd import Answer, Question
from jobs.speech.pool import Pool
from jobs.speech.sample import MeasureTask
from jobs.speech.speech_encoder import is_finite
from jobs.speech.units import EncoderSpec
from jobs.speech.utterances import Utterance, WaveReader, batches, pages
from orchestrator.quantities import SAMPLE_RATE_HZ

log = logging.getLogger(__name__)

BLOCK_SAMPLES = 240 * SAMPLE_RATE_HZ


@dataclass(frozen=True, kw_only=True)
class BlockTask:
    """One question about one block."""

    block: int
    utterances: Sequence[Utterance]
    """Its utterances, for a worker that does not hold the block's frames."""
    question: ray.ObjectRef[Any]
    """A `jobs.speech.lloyd.Question`, in Ray's object store."""


class BlockWorker:
    """The codebook stage's worker: computes a block's features once and keeps them in memory."""

    def __init__(self, encoder: EncoderSpec, roots: Mapping[str, Root]) -> None:
        self._encoder = encoder.load()
        self._reader = WaveReader(roots)
        self._blocks: dict[int, Tensor] = {}

    def __call__(self, task: BlockTask | MeasureTask) -> Any:
        """The block's answer, or the windows that were to be found."""
        if isinstance(task, MeasureTask):
            return task(self._reader)
        if task.block not in self._blocks:
            self._blocks[task.block] = self._features(task.utterances)
        question: Question[Any] = ray.get(task.question)
        return question(self._blocks[task.block], task.block, self._encoder.device)

    def _features(self, utterances: Sequence[Utterance]) -> Tensor:
        """``feats_ND`` of a block, utterances in their order; none of what holds no numbers."""
        feats: list[Tensor] = [torch.empty(0, self._encoder.dim)] * len(utterances)
        waves = (self._reader.read(utterance) for utterance in utterances)
        for positions, batch in batches(waves, self._encoder.max_padded_samples):
            for position, feats_TD in zip(positions, self._encoder.features(batch), strict=True):
                if is_finite(feats_TD):
                    feats[position] = feats_TD.cpu()
                else:
                    log.warning("%s: its features hold NaN or infinity", utterances[position].id)
        return torch.cat(feats)


class BlocksOnPool:
    """`lloyd.Blocks` that a pool of `BlockWorker` holds; ``tick`` is called once a second."""

    def __init__(
        self, pool: Pool, utterances: Sequence[Utterance], *, tick: Callable[[], None]
    ) -> None:
        self._pool, self._tick = pool, tick
        self._blocks = list(pages(utterances, lambda u: u.num_samples, BLOCK_SAMPLES))

    def __len__(self) -> int:
        return len(self._blocks)

    def ask(self, question: Question[Answer]) -> Iterator[Answer]:
        """See `lloyd.Blocks`."""
        asked = ray.put(question)

        def task(block: int) -> BlockTask:
            return BlockTask(block=block, utterances=self._blocks[block], question=asked)

        return in_order(self._pool.run(range(len(self)), task, sticky=True, tick=self._tick))


def in_order(results: Iterable[tuple[int, Answer]]) -> Iterator[Answer]:
    """Results numbered from 0 in that order, each as soon as those before it are there."""
    early: dict[int, Answer] = {}
    upcoming = 0
    for number, result in results:
        early[number] = result
        while upcoming in early:
            yield early.pop(upcoming)
            upcoming += 1
