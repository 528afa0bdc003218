"""Features of a sample of the corpus, held block by block in the memory of the pool's workers.

In: a sample of utterances, cut into blocks that are a pure function of it. Out: what
`jobs.speech.lloyd` asks of each block, in the order of blocks, whichever worker finishes first.

Shapes: N frames, D features, K clusters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import ray
import torch
from torch import Tensor

from jobs.speech import lloyd
from jobs.speech.pool import Pool
from jobs.speech.units import EncoderSpec
from jobs.speech.utterances import Root, Utterance, WaveReader, batches, pages
from orchestrator.quantities import SAMPLE_RATE_HZ

Result = TypeVar("Result")
Question = Literal["subsample", "sums", "farthest"]

BLOCK_SAMPLES = 240 * SAMPLE_RATE_HZ


def sample_rows(
    ids: Sequence[str], num_samples: Sequence[int], fit_hours: float, seed: int
) -> list[int]:
    """Rows of a random sample of at least ``fit_hours``, or all rows, in manifest order.

    The order of choice is that of the ids' hashes: another corpus with the same utterance treats it
    alike.
    """
    wanted = fit_hours * 3600 * SAMPLE_RATE_HZ
    chosen: list[int] = []
    for row in sorted(range(len(ids)), key=lambda r: _rank(seed, ids[r])):
        if wanted <= 0:
            break
        chosen.append(row)
        wanted -= num_samples[row]
    return sorted(chosen)


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


@dataclass(frozen=True, kw_only=True)
class BlockTask:
    """One question about one block."""

    question: Question
    block: int
    utterances: Sequence[Utterance]
    """Its utterances, for a worker that does not hold the block's frames."""
    count: int = 0
    """Frames of a subsample, or of the farthest."""
    seed: int = 0
    """Of the subsample."""
    centroids: ray.ObjectRef[Any] | None = None
    """``centroids_KD``, in Ray's object store."""


class BlockWorker:
    """The codebook stage's worker: computes a block's features once and keeps them in memory."""

    def __init__(self, encoder: EncoderSpec, roots: Mapping[str, Root]) -> None:
        self._hubert = encoder.load()
        self._reader = WaveReader(roots)
        self._blocks: dict[int, Tensor] = {}

    def __call__(self, task: BlockTask) -> Any:
        """The block's part of what `lloyd.Blocks` gives."""
        if task.block not in self._blocks:
            self._blocks[task.block] = self._features(task.utterances)
        feats_ND = self._blocks[task.block]
        if task.question == "subsample":
            chosen_MD = lloyd.subsample(feats_ND, task.count, seed=task.seed, block=task.block)
            return len(feats_ND), chosen_MD
        assert task.centroids is not None, "only a subsample needs no centroids"
        centroids_KD, device = torch.tensor(ray.get(task.centroids)), self._hubert.device
        if task.question == "sums":
            return lloyd.block_sums(feats_ND, centroids_KD, device)
        return lloyd.farthest_frames(feats_ND, centroids_KD, task.count, device)

    def _features(self, utterances: Sequence[Utterance]) -> Tensor:
        """``feats_ND`` of a block, utterances in their order."""
        feats: list[Tensor] = [torch.empty(0)] * len(utterances)
        for positions, waves in batches(utterances, self._reader):
            for position, feats_TD in zip(positions, self._hubert.features(waves), strict=True):
                feats[position] = feats_TD.cpu()
        return torch.cat(feats)


class BlocksOnPool:
    """`lloyd.Blocks` that a pool of `BlockWorker` holds; ``tick`` is called once a second."""

    def __init__(
        self,
        pool: Pool,
        utterances: Sequence[Utterance],
        *,
        tick: Callable[[], None] = lambda: None,
        max_samples: int = BLOCK_SAMPLES,
    ) -> None:
        self._pool = pool
        self._blocks = list(pages(utterances, max_samples))
        self._tick = tick

    def __len__(self) -> int:
        return len(self._blocks)

    def subsample(self, count: int, seed: int) -> Iterable[tuple[int, Tensor]]:
        """See `lloyd.Blocks`."""
        return self._ask("subsample", count=count, seed=seed)

    def sums(self, centroids_KD: Tensor) -> Iterable[lloyd.BlockSums]:
        """See `lloyd.Blocks`."""
        return self._ask("sums", centroids=ray.put(centroids_KD.numpy()))

    def farthest(self, centroids_KD: Tensor, count: int) -> Iterable[tuple[Tensor, Tensor]]:
        """See `lloyd.Blocks`."""
        return self._ask("farthest", centroids=ray.put(centroids_KD.numpy()), count=count)

    def _ask(self, question: Question, **options: Any) -> Iterator[Any]:
        def task(block: int) -> BlockTask:
            utterances = self._blocks[block]
            return BlockTask(question=question, block=block, utterances=utterances, **options)

        return in_order(self._pool.run(range(len(self)), task, sticky=True, tick=self._tick))


def in_order(results: Iterable[tuple[int, Result]]) -> Iterator[Result]:
    """Results numbered from 0 in that order, each as soon as those before it are there."""
    early: dict[int, Result] = {}
    upcoming = 0
    for number, result in results:
        early[number] = result
        while upcoming in early:
            yield early.pop(upcoming)
            upcoming += 1
