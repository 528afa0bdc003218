"""The perplexity stage: how well the model predicts held-out speech, next to counting baselines."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.attempt import Attempt, run_stage
from jobs.lm.token_stream import bin_name, open_tokens
from jobs.scoring import perplexity
from jobs.scoring.held_out import HeldOut, load_model
from jobs.scoring.perplexity import Scored
from jobs.training.tracker_processes import track_scores
from orchestrator.ledger.storage import to_json
from orchestrator.spec.recipe import Perplexity

SPLITS = ("valid", "test")


def work(attempt: Attempt) -> dict[str, Any]:
    """Write scores.json and each utterance's NLL, by model and by pairs; returns the scores."""
    cache, pack = attempt.cache, attempt.upstream["pack"].storage
    settings = attempt.recipe.evaluate.perplexity
    assert settings is not None, "only a recipe that asks for the score has this node"
    model = load_model(attempt)
    counts = perplexity.count(
        open_tokens(pack.fetch(bin_name("train"), cache)), attempt.recipe.tokenizer.num_clusters
    )
    scores = {
        name: score_split(attempt, model, counts, HeldOut(pack, name, cache), settings)
        for name in SPLITS
    }
    document = {
        "rule": perplexity.RULE,
        "context_length": attempt.recipe.train.context_length,
        "splits": scores,
    }
    # Overwritten rather than created: an attempt that died here may have left the last bits of
    # another device's sums.
    attempt.out.replace("scores.json", to_json(document))
    track_scores(attempt, {"perplexity": scores})
    return {"splits": scores}


def score_split(
    attempt: Attempt,
    model: Any,
    counts: Mapping[str, np.ndarray],
    split: HeldOut,
    settings: Perplexity,
) -> dict[str, Any]:
    """Scores of the model and of both baselines on one split."""

    def tick(done: int) -> None:
        attempt.check()
        attempt.progress(done, max(done, len(split.utterances)), f"{split.name} windows")

    utterances, num_samples = split.utterances, split.num_samples
    scored = perplexity.score_model(
        model,
        utterances,
        context_length=attempt.recipe.train.context_length,
        num_samples=num_samples,
        tick=tick,
    )
    all_scored = {"model": scored}
    for name, table in counts.items():
        all_scored[name] = perplexity.score_counts(table, utterances, num_samples=num_samples)
    _publish_utterances(attempt, split, scored, all_scored.get("bigram"))
    return {
        name: perplexity.summary(
            one, bootstrap_samples=settings.bootstrap_samples, seed=settings.seed
        )
        for name, one in all_scored.items()
    }


def _publish_utterances(
    attempt: Attempt, split: HeldOut, scored: Scored, bigram: Scored | None
) -> None:
    """Each utterance's NLL, and that of counted pairs where the codebook has a table of them."""
    columns = {
        "id": split.ids,
        "nll": scored.nll,
        "num_scored": scored.num_scored,
        "num_samples": scored.num_samples.astype(np.int64),
    }
    if bigram is not None:
        columns["bigram_nll"] = bigram.nll
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    attempt.out.replace(f"{split.name}.nll.parquet", buffer.getvalue())


if __name__ == "__main__":
    sys.exit(run_stage("perplexity", work))
