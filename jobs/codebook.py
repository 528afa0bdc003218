"""The codebook stage: k-means over encoder features of a sample of the corpus.

In: the corpus and the encoder. Out, per key: ``codebook.safetensors`` (``centroids``, KxD fp32) and
``codebook.json``, and ``sample.parquet``, what it is fitted on. Features are fp32 whatever
precision tokenizing uses, so one codebook serves every precision. The encoder hears the sample
once, whatever the number of codebooks, their sizes and their layers; each is published as soon as
it is fitted, and one that cannot be fitted fails no other. A published one is checked on the sample
instead (`jobs.published`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from jobs.attempt import Attempt, run_stage
from jobs.published import facts_of, imported
from jobs.speech import sample
from jobs.speech.feature_blocks import BlocksOnPool, BlockWorker, block_pool
from jobs.speech.lloyd import MAX_ITERATIONS, Blocks, Fit, fit
from jobs.speech.transformer import View
from jobs.speech.units import name_of, view_of, write_codebook
from jobs.speech.utterances import Utterance, read_corpus
from orchestrator.errors import DataError


def work(attempt: Attempt) -> dict[str, Any]:
    """Fit and write the codebooks, or import a published one; returns how they fit."""
    torch.set_num_threads(1)  # k-means++ runs here: one fixed thread count, one rounding
    tokenizer = attempt.recipe.tokenizer
    if tokenizer.codebook is not None:
        return imported(attempt, tokenizer.codebook, partial(report_iteration, attempt))
    tables = read_corpus(attempt)
    views = list(dict.fromkeys(view_of(recipe.encoder) for recipe in attempt.each_recipe))
    with block_pool(attempt, BlockWorker, views) as pool:
        utterances = sample.drawn(attempt, tables, pool, tokenizer.fit_hours, tokenizer.seed)

        def blocks_of(view: View) -> Blocks:
            return BlocksOnPool(pool, utterances, view, tick=attempt.check)

        return {"per_key": fit_each(attempt, blocks_of, utterances)}


class OneOf(NamedTuple):
    """A codebook among several of one pass."""

    name: str
    num_before: int
    num: int


def fit_each(
    attempt: Attempt, blocks_of: Callable[[View], Blocks], utterances: Sequence[Utterance]
) -> dict[str, dict[str, Any]]:
    """Fit, write and publish each codebook; the facts of each, by key.

    Raises DataError after all of them when some cannot be fitted, which it names.
    """
    facts, failed, num = {}, [], len(attempt.keys)
    of_each = zip(attempt.keys, attempt.outs, attempt.each_recipe, strict=True)
    for number, (key, out, recipe) in enumerate(of_each):
        of = OneOf(name_of(recipe), number, num) if num > 1 else None
        report = partial(report_iteration, attempt, of=of)
        num_clusters, seed = recipe.tokenizer.num_clusters, recipe.tokenizer.seed
        try:
            blocks = blocks_of(view_of(recipe.encoder))
            fitted = fit(blocks, num_clusters, seed, on_iteration=report)
        except DataError as error:
            failed.append(f"codebook of {of.name}: {error}" if of else str(error))
            continue
        facts[key] = facts_of(write_codebook(out, fitted), fitted.num_frames, utterances)
        attempt.publish(key, facts[key])
        report_fit(attempt, fitted, of=of)
    if failed:
        raise DataError("; ".join(failed))
    return facts


def report_iteration(
    attempt: Attempt, number: int, inertia: float, *, of: OneOf | None = None
) -> None:
    """Say how far k-means is, and of which codebook where there are several.

    Raises LeaseHeldError when the attempt must end.
    """
    attempt.check()
    which = {"of": of.name} if of else {}
    attempt.event("iteration", number=number, inertia=inertia, **which)
    if of:
        done = of.num_before + round(number / (MAX_ITERATIONS + 1), 2)
        attempt.progress(done, of.num, f"codebooks, now {of.name}", inertia=inertia)
    else:
        attempt.progress(number, MAX_ITERATIONS, "iterations", inertia=inertia)


def report_fit(attempt: Attempt, fitted: Fit, *, of: OneOf | None = None) -> None:
    """Say that k-means is done, which is seldom after as many iterations as it may take."""
    done, total, unit = fitted.iterations, fitted.iterations, "iterations"
    if of:
        done, total, unit = of.num_before + 1, of.num, "codebooks"
    attempt.progress(done, total, unit, inertia=fitted.inertia)


if __name__ == "__main__":
    sys.exit(run_stage("codebook", work))
