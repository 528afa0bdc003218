"""Paired differences: two models on the same utterances, by a bootstrap that draws both alike.

In: each utterance's NLL under either model, as the perplexity stage leaves it. Out: `Difference`.
An utterance that is hard is hard for both, so the interval of their difference is far narrower than
those of the two scores: intervals that overlap say nothing against a difference. Where a model was
trained with several seeds, the interval covers both choices: that of utterances by the bootstrap,
that of seeds by Student's t with Welch's degrees of freedom, since a bootstrap of a handful of
seeds is far too narrow. Both are independent, so that their half-widths add up as squares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from orchestrator.errors import CorruptError
from orchestrator.ledger.status import BROKEN
from orchestrator.ledger.storage import Storage
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.report.over_seeds import half_width_95
from orchestrator.report.record import VariantRecord

NUM_RESAMPLINGS = 2_000
_SEED = 0
_DRAWS_AT_ONCE = 4_000_000
_MAX_RATIO_NATS = 4.6
"""A difference per token beyond which the ratio of perplexities, 100, is no figure to read."""

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
    bigram_nll: Any = None
    """Total NLL of each by counted pairs of units, where there is a table of them."""

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
    """Perplexity of the first over that of the second; None where tokens are not the same, or one
    is more than 100 times the other."""

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
    """NLL by utterance of variants, each file read once."""

    split: str = "test"
    _known: dict[str, Utterances | str] = field(default_factory=dict)
    """By the URL of the scores: what was read, or why nothing was."""

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

    def against_pairs(self, variants: Sequence[VariantRecord]) -> Difference | None:
        """The difference of a model, given once a seed, and of counted pairs of its units.

        None where any of them has no NLL by utterance, or none of pairs.
        """
        known = [u for u in map(self.of, variants) if u is not None and u.bigram_nll is not None]
        if not known or len(known) < len(variants):
            return None
        counted = [replace(u, nll=u.bigram_nll) for u in known]
        return difference(known, counted, same_tokens=True)

    def of(self, variant: VariantRecord) -> Utterances | None:
        """Those of one variant; None where it has none that can be read."""
        found = self._found(variant)
        return found if isinstance(found, Utterances) else None

    def problem_of(self, variant: VariantRecord) -> str:
        """Why it has none, in words; empty where it has."""
        found = self._found(variant)
        return found if isinstance(found, str) else ""

    def _found(self, variant: VariantRecord) -> Utterances | str:
        scored = variant.perplexity
        if scored is None or not scored.is_complete:
            return "no test scores yet"
        url = scored.storage.url
        if url not in self._known:
            self._known[url] = self._read(scored.storage)
        return self._known[url]

    def _read(self, storage: Storage) -> Utterances | str:
        try:
            found = read_utterances(storage, self.split)
        except ImportError:
            return (
                "reading NLL by utterance takes pyarrow, which is not installed here "
                "(pip install 'orchestrator[report]')"
            )
        except FileNotFoundError:
            return "the scores have no NLL by utterance"
        except BROKEN as error:
            return f"NLL by utterance cannot be read ({_first_line(error)})"
        return _senseless(found) or found


def _senseless(utterances: Utterances) -> str:
    """That an NLL is no number, as that of a model that has diverged is; empty where all are."""
    import numpy as np

    bad = np.flatnonzero(~np.isfinite(utterances.nll))
    if not bad.size:
        return ""
    first = utterances.ids[bad[0]]
    return (
        f"the NLL of {bad.size:,} of {len(utterances.ids):,} utterances is not finite, the first "
        f"{first}: the model gives no probabilities there"
    )


def read_utterances(storage: Storage, split: str) -> Utterances:
    """The NLLs of a split, from a perplexity artifact.

    Raises FileNotFoundError, CorruptError, another OSError where the store does not answer, and
    ImportError where there is no pyarrow.
    """
    path = f"{split}.nll.parquet"
    data = storage.read_bytes(path)
    import pyarrow as pa

    from orchestrator.parquet import read_parquet

    # A damaged file raises any of these, OSError and UnicodeDecodeError among them.
    try:
        return _utterances_of(read_parquet(data))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise CorruptError(
            f"{storage.url}/{path}: {_first_line(error)}; score the model again"
        ) from None


def _utterances_of(table: Any) -> Utterances:
    """Raises ValueError, KeyError or TypeError for a table of anything else."""
    import numpy as np

    columns = {name: table[name] for name in ("id", "nll", "num_scored", "num_samples")}
    if "bigram_nll" in table.column_names:
        columns["bigram_nll"] = table["bigram_nll"]
    for name, column in columns.items():
        if column.null_count:
            raise ValueError(f"{name}: {column.null_count} rows have none")
    num_scored, num_samples = (
        columns[name].to_numpy().astype(np.int64, casting="safe")
        for name in ("num_scored", "num_samples")
    )
    if (num_scored < 0).any() or (num_samples < 0).any():
        raise ValueError("counts below 0")
    nll = {
        name: columns[name].to_numpy().astype(np.float64, casting="same_kind")
        for name in ("nll", "bigram_nll")
        if name in columns
    }
    ids = tuple(map(str, columns["id"].to_pylist()))
    return Utterances(ids=ids, num_scored=num_scored, num_samples=num_samples, **nll)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def difference(
    first: Sequence[Utterances], second: Sequence[Utterances], *, same_tokens: bool
) -> Difference | None:
    """The first model's NLL less the second's, over the utterances that all have scored.

    Each is one model a seed. Per token where ``same_tokens``, that is where both have the same
    units of the same utterances, else per second of audio, which other units change nothing of.
    None where fewer than two utterances are shared, for one says nothing of others, or nothing of
    them was scored.
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
    if weight_U.sum() <= 0:
        return None
    ours_SU, theirs_SU = nll_SU[: len(first)], nll_SU[len(first) :]
    gap_U = ours_SU.mean(0) - theirs_SU.mean(0)
    value = float(gap_U.sum() / weight_U.sum())
    low, high = np.percentile(_resampled(gap_U, weight_U), [2.5, 97.5]).tolist()
    by_seed = [(side.sum(1) / weight_U.sum()).tolist() for side in (ours_SU, theirs_SU)]
    of_seeds = half_width_95(*by_seed)
    is_readable = same_tokens and abs(value) < _MAX_RATIO_NATS
    return Difference(
        measure="nats per token" if same_tokens else "nats per second of audio",
        value=value,
        interval_95=(
            value - math.hypot(value - low, of_seeds),
            value + math.hypot(high - value, of_seeds),
        ),
        num_utterances=len(shared),
        num_left_out=len(set[str]().union(*(u.ids for u in everything))) - len(shared),
        perplexity_ratio=math.exp(value) if is_readable else None,
    )


def _shared(everything: Sequence[Utterances]) -> list[tuple[str, int]]:
    """The stretches of audio that all have scored, in order."""
    return sorted(set.intersection(*(set(utterances.stretches) for utterances in everything)))


def _aligned(utterances: Utterances, stretches: Sequence[tuple[str, int]]) -> Mapping[str, Any]:
    """Arrays of some utterances, in the order of ``stretches``."""
    at = {stretch: n for n, stretch in enumerate(utterances.stretches)}
    order = [at[stretch] for stretch in stretches]
    return {name: getattr(utterances, name)[order] for name in ("nll", "num_scored", "num_samples")}


def _resampled(gap_U: Any, weight_U: Any) -> Any:
    """The difference in each resampling of the utterances (float64, one a resampling)."""
    import numpy as np

    rng = np.random.Generator(np.random.Philox(key=_SEED))
    num_utterances = len(weight_U)
    step = max(1, _DRAWS_AT_ONCE // num_utterances)
    parts = []
    for first in range(0, NUM_RESAMPLINGS, step):
        num = min(step, NUM_RESAMPLINGS - first)
        # How often each utterance was drawn, in each resampling.
        times = rng.multinomial(num_utterances, np.full(num_utterances, 1 / num_utterances), num)
        parts.append(times @ gap_U / np.maximum(times @ weight_U, 1e-9))
    return np.concatenate(parts)


def have_same_tokens(one: Utterances, other: Utterances) -> bool:
    """Whether the utterances that both have scored were cut into as many tokens each.

    Other units of the same speech differ somewhere; who compares codebooks knows better still.
    """
    import numpy as np

    shared = _shared([one, other])
    ours, theirs = (_aligned(u, shared)["num_scored"] for u in (one, other))
    return bool(np.array_equal(ours, theirs))
