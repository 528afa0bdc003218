"""The codebook stage: k-means over encoder features of a sample of the corpus.

In: the corpus and the encoder. Out, per key: ``codebook.safetensors`` (``centroids``, KxD fp32) and
``codebook.json``, and ``sample.parquet``, what it is fitted on. Features are fp32 whatever
precision tokenizing uses, so one codebook serves every precision. The encoder hears the sample
once, whatever the number of codebooks, their sizes and their layers. A published one is checked on
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
from jobs.speech.feature_blocks import BlocksOnPool, BlockWorker, block_pool
from jobs.speech.lloyd import MAX_ITERATIONS, Fit, fit
from jobs.speech.units import view_of, write_codebook
from jobs.speech.utterances import read_corpus
from orchestrator.spec.recipe import Recipe


def work(attempt: Attempt) -> dict[str, Any]:
    """Fit and write the codebooks, or import a published one; returns how they fit."""
    torch.set_num_threads(1)  # k-means++ runs here: one fixed thread count, one rounding
    tokenizer = attempt.recipe.tokenizer
    if tokenizer.codebook is not None:
        return imported(attempt, tokenizer.codebook, partial(report_iteration, attempt))
    tables, recipes = read_corpus(attempt), attempt.each_recipe
    views = list(dict.fromkeys(view_of(recipe.encoder) for recipe in recipes))
    facts = {}
    with block_pool(attempt, BlockWorker, views) as pool:
        utterances = sample.drawn(attempt, tables, pool, tokenizer.fit_hours, tokenizer.seed)
        for key, out, recipe in zip(attempt.keys, attempt.outs, recipes, strict=True):
            blocks = BlocksOnPool(pool, utterances, view_of(recipe.encoder), tick=attempt.check)
            of = _name(recipe) if len(recipes) > 1 else ""
            report = partial(report_iteration, attempt, of=of)
            num_clusters, seed = recipe.tokenizer.num_clusters, recipe.tokenizer.seed
            fitted = fit(blocks, num_clusters, seed, on_iteration=report)
            facts[key] = facts_of(write_codebook(out, fitted), fitted.num_frames, utterances)
    report_fit(attempt, fitted)
    return {"per_key": facts}


def _name(recipe: Recipe) -> str:
    view = view_of(recipe.encoder)
    return f"{recipe.tokenizer.num_clusters} clusters of layer {view.layer} {view.output}"


def report_iteration(attempt: Attempt, number: int, inertia: float, *, of: str = "") -> None:
    """Say how far k-means is, and of which codebook where there are several.

    Raises LeaseHeldError when the attempt must end.
    """
    attempt.check()
    which = {"of": of} if of else {}
    attempt.event("iteration", number=number, inertia=inertia, **which)
    unit = f"iterations for {of}" if of else "iterations"
    attempt.progress(number, MAX_ITERATIONS, unit, inertia=inertia)


def report_fit(attempt: Attempt, fitted: Fit) -> None:
    """Say that k-means is done, which is seldom after as many iterations as it may take."""
    attempt.progress(fitted.iterations, fitted.iterations, "iterations", inertia=fitted.inertia)


if __name__ == "__main__":
    sys.exit(run_stage("codebook", work))
