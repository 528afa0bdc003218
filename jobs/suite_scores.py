"""The suite_scores stage: how often a model finds the right one of a pair the likelier.

In: the suite's units, the trained model, and the suite's folder for its pairs. Out:
``scores.json``, ``log_probs.parquet`` with each recording's, the official tables. Batches are a
pure function of the suite and done by as many workers as there are, so that their number changes
nothing.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.attempt import Attempt, run_stage
from jobs.scoring.likelihood import Likelihood, Piece, log_probs, pieces_of
from jobs.scoring.scored_suite import SuiteTokens, document, headlines, table_of
from jobs.scoring.suites.scores import items_of
from jobs.scoring.suites.submission import About, submission
from jobs.scoring.suites.suite import Suite
from jobs.scoring.suites.tables import tables
from jobs.scoring.unit_model import Vocabulary, load_model
from jobs.speech.pool import stage_pool
from jobs.suite_units import suite_of, utterances_of
from jobs.training.tracker_processes import track_scores
from orchestrator.errors import DataError
from orchestrator.ledger.storage import Storage, to_json
from orchestrator.spec.recipe import Recipe

SCORES, LOG_PROBS, ITEMS = "scores.json", "log_probs.parquet", "items.json"
TABLES, SUBMISSION = "tables", "submission"


class ScoreWorker:
    """The stage's worker: holds the model, and scores batches."""

    def __init__(self, model_url: str) -> None:
        """``model_url``: a folder in Hugging Face format."""
        with tempfile.TemporaryDirectory() as cache:
            folder = fetched(Storage(model_url), Path(cache))
            self._model = load_model(folder, where="train", refusal=DataError)

    def __call__(self, pieces: Sequence[Piece]) -> list[float]:
        """The log-probability of each piece of a batch."""
        return log_probs(self._model, pieces)


def fetched(model: Storage, cache: Path) -> Path:
    """A local folder with the files of a model: its own, or a copy in ``cache``."""
    if model.local_root is not None:
        return model.local_root
    for path in model.list():
        model.fetch(path, cache)
    return cache


def work(attempt: Attempt) -> dict[str, Any]:
    """Write the scores; returns the figures that papers quote."""
    suite, _ = suite_of(attempt)
    units = attempt.upstream["units"]
    if suite.fingerprint != units.facts["fingerprint"]:
        raise DataError(
            f"{suite.kind}: its folder is not what its units were made of; submit again, so that "
            "they are made anew"
        )
    settings = attempt.recipe.evaluate.asked_suites[attempt.part].settings
    vocabulary = Vocabulary(context_length=attempt.recipe.train.context_length)
    tokens = SuiteTokens(utterances_of(units.storage), vocabulary)
    likelihoods = tokens.likelihoods(_scored(attempt, tokens))
    scores = document(
        suite,
        likelihoods,
        vocabulary,
        bootstrap_samples=settings.bootstrap_samples,
        seed=settings.seed,
    )
    write_scores(attempt.out, suite, likelihoods, scores)
    write_submission(attempt.out, [(suite, likelihoods)], about_model(attempt.recipe))
    found = headlines(scores)
    track_scores(attempt, {attempt.part: values_of(found)})
    return {"suite": suite.name, "splits": found}


def write_scores(
    out: Storage, suite: Suite, likelihoods: Mapping[str, Likelihood], scores: Mapping[str, Any]
) -> None:
    """Write the scores, what they are of, and the official tables."""
    # Overwritten rather than created: an attempt that died here may have left the last bits of
    # another device's sums.
    out.replace(LOG_PROBS, table_of(likelihoods))
    out.replace(SCORES, to_json(scores))
    out.replace(ITEMS, to_json(items_of(suite, means_of(likelihoods))))
    for name, text in tables(suite, means_of(likelihoods)).items():
        out.replace(f"{TABLES}/{name}", text.encode())


def write_submission(
    out: Storage, scored: Iterable[tuple[Suite, Mapping[str, Likelihood]]], about: About
) -> None:
    """Write what the suites' own leaderboards take, below a folder for each; nothing of others."""
    measured = ((suite, means_of(likelihoods)) for suite, likelihoods in scored)
    for path, text in submission(measured, about).items():
        out.replace(f"{SUBMISSION}/{path}", text.encode())


def about_model(recipe: Recipe) -> About:
    """What a submission says of a recipe's model."""
    start = "warm" if recipe.model.init == "twist" else "cold"
    units = f"{recipe.tokenizer.num_clusters} units of {recipe.encoder.frame_rate_hz:g} Hz"
    return About(
        system_description=f"{recipe.name}: {recipe.model.text_model}, {start} start, on {units}",
        train_set=", ".join(source.name for source in recipe.corpus.sources),
    )


def means_of(likelihoods: Mapping[str, Likelihood]) -> dict[str, float]:
    """What is compared of each utterance: its mean log-probability per token."""
    return {name: one.per_token for name, one in likelihoods.items()}


def values_of(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Of headlines the values alone, by split and name."""
    return {
        split: {name: row["value"] for name, row in rows.items()} for split, rows in found.items()
    }


def _scored(attempt: Attempt, tokens: SuiteTokens) -> dict[int, list[float]]:
    """What the pool finds of each batch, by its number."""
    model_url = f"{attempt.upstream['train'].storage.url}/model"
    batches, scored = tokens.batches, dict[int, list[float]]()

    def pieces(number: int) -> list[Piece]:
        return pieces_of(tokens.sequences, batches[number])

    with stage_pool(attempt, ScoreWorker, model_url) as pool:
        for number, values in pool.run(range(len(batches)), pieces, tick=attempt.check):
            scored[number] = values
            attempt.progress(len(scored), len(batches), "batches")
    return scored


if __name__ == "__main__":
    sys.exit(run_stage("suite_scores", work))
