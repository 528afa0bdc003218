"""How well a codebook fits every layer of an encoder, in every way that it can be taken.

In: a sample of utterances, the centroids. Out: per view, how far frames are from their centroids
and from each other. One pass of all layers serves all views; no frame is kept.

Shapes: N frames, D features, K clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from torch import Tensor

from jobs.speech.feature_blocks import BLOCK_SAMPLES, BlockTask, BlockWorker, in_order
from jobs.speech.judged import Spread
from jobs.speech.lloyd import nearest
from jobs.speech.pool import Pool
from jobs.speech.sample import MeasureTask
from jobs.speech.speech_encoder import SpeechEncoder
from jobs.speech.transformer import View
from jobs.speech.utterances import Utterance, batches, pages


@dataclass(frozen=True, kw_only=True)
class ViewTask:
    """Some utterances to be seen in every way."""

    utterances: Sequence[Utterance]
    centroids: ray.ObjectRef[Tensor]
    """``centroids_KD``, in Ray's object store."""


class ViewWorker(BlockWorker):
    """A worker for fits, which also measures a codebook in every view."""

    _whole: SpeechEncoder | None = None
    """All layers, once they are asked for."""

    def __call__(self, task: BlockTask | MeasureTask | ViewTask) -> Any:
        """What `BlockWorker` gives, or the spread of each view."""
        if not isinstance(task, ViewTask):
            return super().__call__(task)
        if self._whole is None:
            self._whole = replace(self.spec, layer=None, output="after_residual").load()
        centroids_KD = ray.get(task.centroids).to(self._whole.device)
        waves = (self._reader.read(utterance) for utterance in task.utterances)
        found: dict[View, Spread] = {}
        for _, batch in batches(waves, self._whole.max_padded_samples):
            for some in self._whole.views(batch, lambda f_ND: spread_of(f_ND, centroids_KD)):
                add(found, some)
        return found


def spread_of(feats_ND: Tensor, centroids_KD: Tensor) -> Spread:
    """Of the frames that hold numbers."""
    feats_ND = feats_ND[feats_ND.isfinite().all(1)]
    return Spread.of(feats_ND, nearest(feats_ND, centroids_KD))


def add(total: dict[View, Spread], more: Mapping[View, Spread]) -> None:
    """Add to the spread of each view that has frames."""
    for view, spread in more.items():
        if spread.num_frames:
            total[view] = total[view] + spread if view in total else spread


def spreads_of(
    pool: Pool,
    utterances: Sequence[Utterance],
    centroids_KD: Tensor,
    *,
    tick: Callable[[], None],
) -> dict[View, Spread]:
    """Of each view, by a pool of `ViewWorker`; ``tick`` is called once a second."""
    centroids = ray.put(centroids_KD)
    blocks = list(pages(utterances, lambda u: u.num_samples, BLOCK_SAMPLES))

    def task(block: int) -> ViewTask:
        return ViewTask(utterances=blocks[block], centroids=centroids)

    total: dict[View, Spread] = {}
    for some in in_order(pool.run(range(len(blocks)), task, tick=tick)):
        add(total, some)
    return total
