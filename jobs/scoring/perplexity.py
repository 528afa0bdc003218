"""How well a language model predicts held-out units: NLL by utterance, and what follows.

The rule, the same for every model and baseline here: each utterance alone, no BOS and no EOS; its
first unit is context and never scored, all others are. An utterance longer than the model's context
is read in windows of that length that advance by half of it, each unit scored once with the longest
context available. Perplexity is exp(total NLL / scored units); the NLL per second divides the same
total by the seconds of audio behind the utterances, and so compares tokenisers of different rates,
which perplexity cannot.

Shape legend: V units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.scoring.likelihood import log_probs, pieces_of, plan_batches, summed
from orchestrator.quantities import SAMPLE_RATE_HZ

MAX_BIGRAM_UNITS = 4_096
"""Largest codebook whose bigram table is counted: 134 MB at 8 bytes a pair."""
RULE = (
    "each utterance alone; no BOS, no EOS; the first unit of an utterance is context and not "
    "scored; longer utterances in windows of context_length advancing by half; perplexity = "
    "exp(sum of NLL / scored units), natural logarithm"
)
_COUNT_CHUNK = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Scored:
    """NLL of some utterances, in their order."""

    nll: np.ndarray
    """Total NLL of each utterance, in nats (float64)."""
    num_scored: np.ndarray
    """Units scored in each."""
    num_samples: np.ndarray
    """Audio samples at 16 kHz behind each."""

    @property
    def perplexity(self) -> float:
        """exp(nats per scored unit)."""
        return math.exp(self.nll.sum() / max(self.num_scored.sum(), 1))

    @property
    def nats_per_s(self) -> float:
        """Nats per second of audio."""
        return float(self.nll.sum() / (self.num_samples.sum() / SAMPLE_RATE_HZ))


def summary(scored: Scored, *, bootstrap_samples: int, seed: int) -> dict[str, Any]:
    """Both measures with their 95 % intervals over utterances."""
    per_token, per_s = _bootstrap(scored, bootstrap_samples, seed)
    return {
        "perplexity": scored.perplexity,
        "perplexity_95": [math.exp(bound) for bound in per_token],
        "nats_per_token": math.log(scored.perplexity),
        "nats_per_s": scored.nats_per_s,
        "nats_per_s_95": list(per_s),
        "num_utterances": len(scored.nll),
        "num_scored_tokens": int(scored.num_scored.sum()),
        "audio_s": float(scored.num_samples.sum() / SAMPLE_RATE_HZ),
    }


def _bootstrap(
    scored: Scored, num_resamplings: int, seed: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Percentile intervals of nats per token and per second, utterances drawn with replacement."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    size = len(scored.nll)
    nats = np.empty((num_resamplings, 2))
    for n in range(num_resamplings):
        drawn = rng.integers(0, size, size)
        nll = scored.nll[drawn].sum()
        nats[n, 0] = nll / max(scored.num_scored[drawn].sum(), 1)
        nats[n, 1] = nll / (scored.num_samples[drawn].sum() / SAMPLE_RATE_HZ)
    (low, low_s), (high, high_s) = np.percentile(nats, [2.5, 97.5], axis=0).tolist()
    return (low, high), (low_s, high_s)


def score_model(
    model: Any,
    utterances: Sequence[np.ndarray],
    *,
    context_length: int,
    num_samples: np.ndarray,
    tick: Callable[[int], None] = lambda _: None,
) -> Scored:
    """NLL of each utterance under a causal LM. ``tick`` is told how many windows are done."""
    batches = plan_batches([len(units) for units in utterances], context_length)
    scored: dict[int, list[float]] = {}
    done = 0
    for number, batch in enumerate(batches):
        scored[number] = log_probs(model, pieces_of(utterances, batch))
        done += len(batch)
        tick(done)
    nll = 0.0 - summed(len(utterances), scored, batches)  # no -0.0 where nothing is scored
    return Scored(nll=nll, num_scored=num_scored(utterances), num_samples=num_samples)


def num_scored(utterances: Sequence[np.ndarray]) -> np.ndarray:
    """Units of each utterance that the rule scores."""
    return np.array([max(len(units) - 1, 0) for units in utterances], dtype=np.int64)


def count(tokens: np.ndarray, num_units: int) -> dict[str, np.ndarray]:
    """How often units (``unigram``, V) and pairs of neighbours (``bigram``, VxV) occur in a stream.

    Pairs across utterances are included, as the model sees them; a codebook too large for a table
    of pairs has none.
    """
    pairs_fit = num_units <= MAX_BIGRAM_UNITS
    unigrams = np.zeros(num_units, dtype=np.int64)
    bigrams = np.zeros(num_units**2 if pairs_fit else 0, dtype=np.int64)
    for start in range(0, len(tokens), _COUNT_CHUNK):
        chunk = tokens[start : start + _COUNT_CHUNK + 1].astype(np.int64)
        unigrams += np.bincount(chunk[:_COUNT_CHUNK], minlength=num_units)
        if pairs_fit:
            bigrams += np.bincount(chunk[:-1] * num_units + chunk[1:], minlength=num_units**2)
    pairs = {"bigram": bigrams.reshape(num_units, num_units)} if pairs_fit else {}
    return {"unigram": unigrams, **pairs}


def score_counts(
    counts: np.ndarray, utterances: Sequence[np.ndarray], *, num_samples: np.ndarray
) -> Scored:
    """NLL under add-one smoothed frequencies of units, given the one before where pairs count."""
    log_p = np.log(counts + 1) - np.log((counts + 1).sum(-1, keepdims=True))
    if counts.ndim == 1:
        nll = [-log_p[units[1:]].sum() for units in utterances]
    else:
        nll = [-log_p[units[:-1], units[1:]].sum() for units in utterances]
    return Scored(nll=np.array(nll), num_scored=num_scored(utterances), num_samples=num_samples)
