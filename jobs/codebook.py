"""The codebook stage: k-means over encoder features of a sample of the corpus.

In: the corpus and the encoder. Out: ``codebook.safetensors`` (``centroids``, KxD fp32) and
``codebook.json``. Features are fp32 whatever precision tokenizing uses, so one codebook serves
every precision.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch

from jobs.attempt import Attempt, run_stage
from jobs.speech.feature_blocks import BlocksOnPool, BlockWorker, sample_rows
from jobs.speech.lloyd import MAX_ITERATIONS, fit
from jobs.speech.pool import Pool, PoolSize, session
from jobs.speech.units import EncoderSpec, write_codebook
from jobs.speech.utterances import CorpusRows, Root, Utterance
from orchestrator.quantities import SAMPLE_RATE_HZ


def work(attempt: Attempt) -> dict[str, Any]:
    """Fit and write the codebook; returns how the fit went."""
    torch.set_num_threads(1)  # k-means++ runs here: one fixed thread count, one rounding
    tokenizer, size = attempt.recipe.tokenizer, PoolSize.of(attempt.resources)
    encoder = EncoderSpec(
        url=attempt.upstream["encoder"].storage.url, layer=attempt.recipe.encoder.layer
    )
    utterances = sampled(attempt)
    with (
        session(attempt.ray_address, size.max_workers * size.cpus_per_worker),
        Pool(BlockWorker, encoder, source_roots(attempt), size=size) as pool,
    ):
        fitted = fit(
            BlocksOnPool(pool, utterances, tick=attempt.check),
            tokenizer.num_clusters,
            tokenizer.seed,
            on_iteration=lambda number, inertia: _report(attempt, number, inertia),
        )
    notes = {"inertia": fitted.inertia, "iterations": fitted.iterations}
    digest = write_codebook(attempt.out, fitted.centroids, notes)
    audio_s = sum(u.num_samples for u in utterances) / SAMPLE_RATE_HZ
    return {
        **notes,
        "sha256": digest,
        "num_clusters": tokenizer.num_clusters,
        "num_frames": fitted.num_frames,
        "num_utterances": len(utterances),
        "audio_s": audio_s,
    }


def sampled(attempt: Attempt) -> list[Utterance]:
    """The utterances k-means is fitted on."""
    tokenizer = attempt.recipe.tokenizer
    rows = CorpusRows.read(attempt.upstream["corpus"].storage)
    return rows.at(
        sample_rows(rows.ids, rows.num_samples.tolist(), tokenizer.fit_hours, tokenizer.seed)
    )


def source_roots(attempt: Attempt) -> Mapping[str, Root]:
    """Where each source lies here, and its band limit."""
    return {
        source.name: Root(attempt.data_root(source.name), source.lowpass_hz)
        for source in attempt.recipe.corpus.sources
    }


def _report(attempt: Attempt, iteration: int, inertia: float) -> None:
    attempt.event("iteration", number=iteration, inertia=inertia)
    attempt.progress(iteration, MAX_ITERATIONS, "iterations", inertia=inertia)


if __name__ == "__main__":
    sys.exit(run_stage("codebook", work))
