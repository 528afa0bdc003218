"""Features of a sample of the corpus, held block by block by the pool's workers.

In: a sample of utterances, cut into blocks that are a pure function of it. Out: what
`jobs.speech.lloyd` asks of each block, in the order of blocks, whichever worker finishes first.
One pass of the encoder gives a block's features of every view that is asked about.

Shapes: N frames, D features, K clusters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import torch
from torch import Tensor

from jobs.attempt import Attempt
from jobs.audio.roots import Root
from jobs.speech.held_frames import HeldFrames
from jobs.speech.lloyd import Answer, Question
from jobs.speech.pool import Pool, stage_pool
from jobs.speech.sample import MeasureTask
from jobs.speech.speech_encoder import is_finite
from jobs.speech.transformer import View
from jobs.speech.units import EncoderSpec
from jobs.speech.utterances import Utterance, WaveReader, batches, pages, source_roots
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.loader import resolve_env

log = logging.getLogger(__name__)

BLOCK_SAMPLES = 240 * SAMPLE_RATE_HZ


@dataclass(frozen=True, kw_only=True)
class BlockTask:
    """One question about one block."""

    block: int
    utterances: Sequence[Utterance]
    """Its utterances, for a worker that does not hold the block's frames."""
    view: View
    """Of its frames."""
    question: ray.ObjectRef[Any]
    """A `jobs.speech.lloyd.Question`, in Ray's object store."""


class BlockWorker:
    """The codebook stage's worker: computes a block's features once and keeps them."""

    def __init__(
        self,
        encoder: EncoderSpec,
        roots: Mapping[str, Root],
        views: Sequence[View],
        scratch: str | None = None,
    ) -> None:
        """``encoder``: of the views' highest layer. ``scratch``: for frames that find no memory."""
        self.spec, self._views = encoder, list(views)
        self._encoder = encoder.load()
        self._reader = WaveReader(roots)
        self._held = HeldFrames(scratch)
        self._blocks: dict[int, dict[View, Tensor]] = {}

    def __call__(self, task: BlockTask | MeasureTask) -> Any:
        """The block's answer, or the windows that were to be found."""
        if isinstance(task, MeasureTask):
            return task(self._reader)
        if task.block not in self._blocks:
            self._blocks[task.block] = self._features(task.utterances)
        question: Question[Any] = ray.get(task.question)
        feats_ND = self._blocks[task.block][task.view]
        return question(feats_ND, task.block, self._encoder.device)

    def _features(self, utterances: Sequence[Utterance]) -> dict[View, Tensor]:
        """``feats_ND`` of a block, utterances in their order; none of what holds no numbers."""
        nothing_TD = torch.empty(0, self._encoder.dim)
        feats = {view: [nothing_TD] * len(utterances) for view in self._views}
        waves = (self._reader.read(utterance) for utterance in utterances)
        for positions, batch in batches(waves, self._encoder.max_padded_samples):
            for view, found in self._encoder.features_of(batch, self._views).items():
                for position, feats_TD in zip(positions, found, strict=True):
                    if is_finite(feats_TD):
                        feats[view][position] = feats_TD.cpu()
                    else:
                        name = utterances[position].id
                        log.warning("%s: its features hold NaN or infinity", name)
        return {view: self._held(torch.cat(own)) for view, own in feats.items()}


@contextmanager
def block_pool(
    attempt: Attempt, worker: type[BlockWorker], views: Sequence[View]
) -> Iterator[Pool]:
    """The workers of a stage that holds features of some views."""
    encoder = EncoderSpec.up_to(views, attempt.upstream["encoder"].storage.url)
    scratch = attempt.cluster.scratch
    folder = resolve_env(scratch, where="cluster: scratch") if scratch else None
    with stage_pool(attempt, worker, encoder, source_roots(attempt), views, folder) as pool:
        yield pool


class BlocksOnPool:
    """`lloyd.Blocks` of one view that a pool of `BlockWorker` holds."""

    def __init__(
        self, pool: Pool, utterances: Sequence[Utterance], view: View, *, tick: Callable[[], None]
    ) -> None:
        """``tick`` is called once a second."""
        self._pool, self._view, self._tick = pool, view, tick
        self._blocks = list(pages(utterances, lambda u: u.num_samples, BLOCK_SAMPLES))

    def __len__(self) -> int:
        return len(self._blocks)

    def ask(self, question: Question[Answer]) -> Iterator[Answer]:
        """See `lloyd.Blocks`."""
        asked = ray.put(question)

        def task(block: int) -> BlockTask:
            utterances = self._blocks[block]
            return BlockTask(block=block, utterances=utterances, view=self._view, question=asked)

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
