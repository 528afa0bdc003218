"""The scores of a suite under one model: from its units to the document that is written down.

The likelihood of a recording is the mean log-probability of its scored tokens, as TWIST scores
(arXiv 2305.13009, section 4.2); what the sum and the mean by second would give stands beside it.
The rule of what is scored is the model's (`jobs.scoring.unit_model`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.scoring.likelihood import Likelihood, Tokens, Window, plan_batches, summed
from jobs.scoring.suites.scores import score_suite
from jobs.scoring.suites.suite import Suite
from jobs.scoring.unit_model import Vocabulary
from jobs.speech.whole_files import Spoken
from orchestrator.errors import DataError
from orchestrator.quantities import SAMPLE_RATE_HZ

MEASURE = "mean log-probability per scored token"
OTHERS = {"sum": "log_prob", "per_s": "per_s"}
"""Other measures by name, and the figure of a `Likelihood` that each is."""


class SuiteTokens:
    """What a model reads of a suite, in batches that the suite alone decides."""

    def __init__(self, utterances: Iterable[Spoken], vocabulary: Vocabulary) -> None:
        """Raises DataError by the id of an utterance of which no token can be scored."""
        self._utterances = list(utterances)
        self.sequences: list[Tokens] = [vocabulary.tokens(u.units_L) for u in self._utterances]
        for utterance, tokens_L in zip(self._utterances, self.sequences, strict=True):
            if len(tokens_L) < 2:
                raise DataError(
                    f"{utterance.id}: nothing of it can be scored: it has {len(tokens_L)} token, "
                    "which is context alone; see whether it is silent, or take more units"
                )
        lengths = [len(tokens_L) for tokens_L in self.sequences]
        self.batches: list[list[Window]] = plan_batches(lengths, vocabulary.context_length)

    def likelihoods(self, scored: Mapping[int, Sequence[float]]) -> dict[str, Likelihood]:
        """By utterance id, from the log-probabilities of all batches by number."""
        total = summed(len(self.sequences), scored, self.batches).tolist()
        return {
            utterance.id: Likelihood(log_prob, len(tokens_L) - 1, utterance.num_samples)
            for utterance, tokens_L, log_prob in zip(
                self._utterances, self.sequences, total, strict=True
            )
        }


def document(
    suite: Suite,
    likelihoods: Mapping[str, Likelihood],
    vocabulary: Vocabulary,
    *,
    bootstrap_samples: int,
    seed: int,
) -> dict[str, Any]:
    """The scores as JSON, with the rule and the measure beside them.

    Raises DataError where a log-probability is missing, or is no number.
    """

    def scored(figure: str) -> dict[str, Any]:
        values = {name: float(getattr(one, figure)) for name, one in likelihoods.items()}
        return score_suite(suite, values, bootstrap_samples=bootstrap_samples, seed=seed)

    log_prob = math.fsum(one.log_prob for one in likelihoods.values())
    num_scored = sum(one.num_scored for one in likelihoods.values())
    audio_s = sum(one.num_samples for one in likelihoods.values()) / SAMPLE_RATE_HZ
    return {
        "measure": MEASURE,
        "likelihood_rule": vocabulary.rule,
        "num_scored_tokens": num_scored,
        "audio_s": audio_s,
        "nats_per_token": -log_prob / num_scored,
        "nats_per_s": -log_prob / audio_s,
        **scored("per_token"),
        "other_measures": {name: headlines(scored(figure)) for name, figure in OTHERS.items()},
    }


def headlines(scores: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """The figures that papers quote, by split and name; what official tables break down is not."""
    kept = ("value", "interval_95", "chance", "num_pairs")
    return {
        split: {
            row["name"]: {name: row[name] for name in kept}
            for row in found["figures"]
            if not row["table"]
        }
        for split, found in scores["splits"].items()
    }


def table_of(likelihoods: Mapping[str, Likelihood]) -> bytes:
    """Each utterance's log-probability, as a Parquet file."""
    rows = likelihoods.values()
    table = pa.table(
        {
            "id": pa.array(list(likelihoods), pa.string()),
            "log_prob": np.array([one.log_prob for one in rows], np.float64),
            "num_scored": np.array([one.num_scored for one in rows], np.int64),
            "num_samples": np.array([one.num_samples for one in rows], np.int64),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
