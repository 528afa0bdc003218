"""Paired differences: two models on the same utterances, by a bootstrap that draws both alike.

In: each utterance's NLL under either model, as the perplexity stage leaves it. Out: `Difference`.
An utterance that is hard is hard for both, so the interval of their difference is far narrower than
those of the two scores: intervals that overlap say nothing against a difference. Where a model was
trained with several seeds, seeds are drawn as well, and the interval covers both choices.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.errors import CorruptError
from orchestrator.ledger.storage import Storage
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.report.record import VariantRecord

NUM_RESAMPLINGS = 2_000
_SEED = 0
_DRAWS_AT_ONCE = 4_000_000

Measure = Literal["nats per token", "nats per second of audio"]


@dataclass(frozen=True, kw_only=True)
class Utterances:
    """NLL of each utterance of a split under one model."""

    ids: tuple[str, ...]
    nll: Any
    """Total NLL of each, in nats: a float64 array."""
    num_scored: Any
    """Tokens that were scored in each: an integer array."""
    num_samples: Any
    """Audio samples at 16 kHz of each: an integer array."""

    @property
    def stretches(self) -> list[tuple[str, int]]:
        """Id and length of each: what is called alike and was cut otherwise is other audio."""
        return list(zip(self.ids, self.num_samples.tolist(), strict=True))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much worse the first of two models is than the second."""

    measure: Measure
    value: float
    """First minus second: below 0 where the first is better."""
    interval_95: tuple[float, float]
    num_utterances: int
    """Those that both have scored."""
    num_left_out: int
    """Those that only one of them has."""
    perplexity_ratio: float | None
    """Perplexity of the first over that of the second; None where tokens are not the same."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval says which is better."""
        low, high = self.interval_95
        return low > 0 or high < 0

    @property
    def text(self) -> str:
        """``-0.187 [-0.210, -0.164] nats per token``."""
        low, high = self.interval_95
        return f"{self.value:+.3f} [{low:+.3f}, {high:+.3f}] {self.measure}"


@dataclass
class PairedScores:
    """NLL by utterance of a run's variants, each file read once."""

    split: str = "test"
    problem: str = ""
    """Why there are none; empty while nothing has gone wrong."""
    _known: dict[str, Utterances | None] = field(default_factory=dict)

    def between(
        self, first: Sequence[VariantRecord], second: Sequence[VariantRecord]
    ) -> Difference | None:
        """The difference of two models of the same units, each given once a seed.

        None where any of them has no NLL by utterance.
        """
        ours, theirs = ([self.of(v) for v in side] for side in (first, second))
        if not ours or not theirs or None in (*ours, *theirs):
            return None
        known = [[u for u in side if u is not None] for side in (ours, theirs)]
        return difference(*known, same_tokens=True)

    def of(self, variant: VariantRecord) -> Utterances | None:
        """Those of one variant; None where it has none that can be read, and ``problem`` why."""
        scored = variant.perplexity
        if scored is None or not scored.is_complete:
            return None
        url = scored.storage.url
        if url not in self._known:
            self._known[url] = self._read(scored.storage)
        return self._known[url]

    def _read(self, storage: Storage) -> Utterances | None:
        try:
            return read_utterances(storage, self.split)
        except ImportError:
            self.problem = (
                "reading NLL by utterance takes pyarrow, which is not installed here "
                "(pip install 'orchestrator[report]')"
            )
        except FileNotFoundError:
            self.problem = "the scores have no NLL by utterance"
        except CorruptError as error:
            self.problem = f"NLL by utterance cannot be read ({error})"
        return None


def read_utterances(storage: Storage, split: str) -> Utterances:
    """The NLLs of a split, from a perplexity artifact.

    Raises FileNotFoundError, CorruptError, and ImportError where there is no pyarrow.
    """
    path = f"{split}.nll.parquet"
    data = storage.read_bytes(path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(data))
        return Utterances(
            ids=tuple(table["id"].to_pylist()),
            nll=table["nll"].to_numpy(),
            num_scored=table["num_scored"].to_numpy(),
            num_samples=table["num_samples"].to_numpy(),
        )
    except (pa.ArrowException, KeyError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorruptError(f"{storage.url}/{path}: {first}; score the model again") from None


def difference(
    first: Sequence[Utterances], second: Sequence[Utterances], *, same_tokens: bool
) -> Difference | None:
    """The first model's NLL less the second's, over the utterances that all have scored.

    Each is one model a seed. Per token where ``same_tokens``, that is where both have the same
    units of the same utterances, else per second of audio, which other units change nothing of.
    None where fewer than two utterances are shared: one says nothing of others.
    """
    import numpy as np

    everything = [*first, *second]
    shared = _shared(everything)
    if len(shared) < 2:
        return None
    rows = [_aligned(utterances, shared) for utterances in everything]
    nll_SU = np.array([row["nll"] for row in rows])
    scored_U, seconds_U = rows[0]["num_scored"], rows[0]["num_samples"] / SAMPLE_RATE_HZ
    weight_U = scored_U if same_tokens else seconds_U
    ours_SU, theirs_SU = nll_SU[: len(first)], nll_SU[len(first) :]
    value = float((ours_SU.mean(0) - theirs_SU.mean(0)).sum() / weight_U.sum())
    low, high = np.percentile(_resampled(ours_SU, theirs_SU, weight_U), [2.5, 97.5]).tolist()
    return Difference(
        measure="nats per token" if same_tokens else "nats per second of audio",
        value=value,
        interval_95=(low, high),
        num_utterances=len(shared),
        num_left_out=len(set[str]().union(*(u.ids for u in everything))) - len(shared),
        perplexity_ratio=float(np.exp(value)) if same_tokens else None,
    )


def _shared(everything: Sequence[Utterances]) -> list[tuple[str, int]]:
    """The stretches of audio that all have scored, in order."""
    return sorted(set.intersection(*(set(utterances.stretches) for utterances in everything)))


def _aligned(utterances: Utterances, stretches: Sequence[tuple[str, int]]) -> Mapping[str, Any]:
    """Arrays of some utterances, in the order of ``stretches``."""
    at = {stretch: n for n, stretch in enumerate(utterances.stretches)}
    order = [at[stretch] for stretch in stretches]
    return {name: getattr(utterances, name)[order] for name in ("nll", "num_scored", "num_samples")}


def _resampled(ours_SU: Any, theirs_SU: Any, weight_U: Any) -> Any:
    """The difference in each resampling of utterances and seeds (float64, one a resampling)."""
    import numpy as np

    rng = np.random.Generator(np.random.Philox(key=_SEED))
    num_utterances = len(weight_U)
    step = max(1, _DRAWS_AT_ONCE // num_utterances)
    parts = []
    for first in range(0, NUM_RESAMPLINGS, step):
        num = min(step, NUM_RESAMPLINGS - first)
        # How often each utterance was drawn, in each resampling.
        times = rng.multinomial(num_utterances, np.full(num_utterances, 1 / num_utterances), num)
        gap = _mean_of_drawn(rng, times @ ours_SU.T) - _mean_of_drawn(rng, times @ theirs_SU.T)
        parts.append(gap / np.maximum(times @ weight_U, 1e-9))
    return np.concatenate(parts)


def _mean_of_drawn(rng: Any, totals_BS: Any) -> Any:
    """The mean over as many seeds as there are, drawn with replacement, in each resampling."""
    import numpy as np

    num, num_seeds = totals_BS.shape
    drawn = rng.integers(0, num_seeds, (num, num_seeds))
    return np.take_along_axis(totals_BS, drawn, axis=1).mean(1)


def have_same_tokens(one: Utterances, other: Utterances) -> bool:
    """Whether the utterances that both have scored were cut into as many tokens each.

    Other units of the same speech differ somewhere; who compares codebooks knows better still.
    """
    import numpy as np

    shared = _shared([one, other])
    ours, theirs = (_aligned(u, shared)["num_scored"] for u in (one, other))
    return bool(np.array_equal(ours, theirs))
