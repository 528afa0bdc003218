"""The targets stage: what one iteration of HuBERT pretraining predicts, for every frame.

In: the corpus and, for targets that are a layer, the model of the iteration before (role
``model``). Out: ``codebook.safetensors`` (centroids, and how features are scaled before them),
``codebook.json`` a file of labels per block of audio, ``shards/000/000017.npy``, and
``sample.parquet``, that audio. Labels that
are there are done: a later attempt makes what is missing.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch

from jobs.attempt import Attempt, run_stage
from jobs.codebook import report_iteration
from jobs.speech import sample, targets
from jobs.speech.feature_blocks import in_order
from jobs.speech.grid import grid_of
from jobs.speech.lloyd import BlocksInMemory, fit
from jobs.speech.pool import Pool, stage_pool
from jobs.speech.units import CODEBOOK_FACTS, EncoderSpec, write_codebook
from jobs.speech.utterances import read_corpus, source_roots
from jobs.unit_shards import shard_path
from orchestrator.errors import DataError
from orchestrator.plan.stages import pretraining


def work(attempt: Attempt) -> dict[str, Any]:
    """Fit the clusters where no attempt has yet, and write every missing block's labels."""
    torch.set_num_threads(1)  # k-means runs here: one fixed thread count, one rounding
    spec, iteration = pretraining(attempt.recipe, attempt.part)
    tables, grid = read_corpus(attempt), grid_of(spec.conv_kernel, spec.conv_stride)
    encoder = None
    if iteration.targets != "mfcc":
        encoder = EncoderSpec(url=attempt.upstream["model"].storage.url, layer=iteration.targets)
    with stage_pool(
        attempt,
        targets.TargetWorker,
        encoder,
        grid,
        source_roots(attempt),
        attempt.out.url,
    ) as pool:
        utterances = sample.drawn(attempt, tables, pool, spec.max_hours, spec.seed)
        blocks = targets.AudioBlocks.of(utterances, spec)
        if not blocks.num_frames.sum():
            raise DataError("encoder.pretrain: no audio holds a whole frame; add longer recordings")
        make_targets(attempt, pool, blocks)
    facts: dict[str, Any] = attempt.out.read_json(CODEBOOK_FACTS)
    return {**facts, "hours": round(blocks.hours, 3), "num_frames": int(blocks.num_frames.sum())}


def make_targets(attempt: Attempt, pool: Pool, blocks: targets.AudioBlocks) -> None:
    """Put what is missing of the codebook and of the labels into the artifact."""
    if not attempt.out.exists(CODEBOOK_FACTS):
        _fit(attempt, pool, blocks)
    _label(attempt, pool, blocks)


def _fit(attempt: Attempt, pool: Pool, blocks: targets.AudioBlocks) -> None:
    spec, iteration = pretraining(attempt.recipe, attempt.part)
    count = -(-targets.FIT_FRAMES // len(blocks.blocks))

    def task(block: int) -> targets.TargetTask:
        utterances = blocks.blocks[block]
        return targets.TargetTask(block=block, utterances=utterances, count=count, seed=spec.seed)

    samples, total = [], len(blocks.blocks)
    results = in_order(pool.run(range(total), task, tick=attempt.check))
    for done, feats_ND in enumerate(results, start=1):
        attempt.progress(done, total, "sampled blocks")
        if len(feats_ND):
            samples.append(feats_ND)
    scaling = targets.scaling_of(torch.cat(samples), standardise=iteration.targets == "mfcc")
    scaled = BlocksInMemory([targets.scaled(feats_ND, scaling) for feats_ND in samples])
    fitted = fit(
        scaled, iteration.num_clusters, spec.seed, on_iteration=partial(report_iteration, attempt)
    )
    write_codebook(attempt.out, fitted, **scaling)


def _label(attempt: Attempt, pool: Pool, blocks: targets.AudioBlocks) -> None:
    present, total = attempt.out.list("shards"), len(blocks.blocks)
    missing = [b for b in range(total) if shard_path(b, "npy") not in present]

    def task(block: int) -> targets.TargetTask:
        return targets.TargetTask(block=block, utterances=blocks.blocks[block])

    labelled = pool.run(missing, task, tick=attempt.check)
    for done, _ in enumerate(labelled, start=total - len(missing) + 1):
        attempt.progress(done, total, "blocks")


if __name__ == "__main__":
    sys.exit(run_stage("targets", work))
