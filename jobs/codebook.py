"""The codebook stage: k-means over encoder features of a sample of the corpus.

In: the corpus and the encoder. Out: ``codebook.safetensors`` (``centroids``, KxD fp32) and
``codebook.json``, and ``sample.parquet``, what it is fitted on. Features are fp32 whatever
precision tokenizing uses, so one codebook serves every precision. A published one is checked on
the sample instead (`jobs.published`).
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch

from jobs.attempt import Attempt, run_stage
from jobs.published import facts_of, imported
from jobs.speech import sample
from jobs.speech.feature_blocks import BlocksOnPool, BlockWorker
from jobs.speech.lloyd import MAX_ITERATIONS, Fit, fit
from jobs.speech.pool import stage_pool
from jobs.speech.units import EncoderSpec, write_codebook
from jobs.speech.utterances import read_corpus, source_roots


def work(attempt: Attempt) -> dict[str, Any]:
    """Fit and write the codebook, or import a published one; returns how it fits."""
    torch.set_num_threads(1)  # k-means++ runs here: one fixed thread count, one rounding
    tokenizer = attempt.recipe.tokenizer
    encoder = EncoderSpec(
        url=attempt.upstream["encoder"].storage.url,
        layer=attempt.recipe.encoder.layer,
        output=attempt.recipe.encoder.output,
    )
    if tokenizer.codebook is not None:
        report = partial(report_iteration, attempt)
        return imported(attempt, tokenizer.codebook, encoder, report)
    tables = read_corpus(attempt)
    with stage_pool(attempt, BlockWorker, encoder, source_roots(attempt)) as pool:
        utterances = sample.drawn(attempt, tables, pool, tokenizer.fit_hours, tokenizer.seed)
        fitted = fit(
            BlocksOnPool(pool, utterances, tick=attempt.check),
            tokenizer.num_clusters,
            tokenizer.seed,
            on_iteration=partial(report_iteration, attempt),
        )
    report_fit(attempt, fitted)
    return facts_of(write_codebook(attempt.out, fitted), fitted.num_frames, utterances)


def report_iteration(attempt: Attempt, number: int, inertia: float) -> None:
    """Say how far k-means is. Raises LeaseHeldError when the attempt must end."""
    attempt.check()
    attempt.event("iteration", number=number, inertia=inertia)
    attempt.progress(number, MAX_ITERATIONS, "iterations", inertia=inertia)


def report_fit(attempt: Attempt, fitted: Fit) -> None:
    """Say that k-means is done, which is seldom after as many iterations as it may take."""
    attempt.progress(fitted.iterations, fitted.iterations, "iterations", inertia=fitted.inertia)


if __name__ == "__main__":
    sys.exit(run_stage("codebook", work))
