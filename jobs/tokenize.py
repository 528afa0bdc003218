"""The tokenize stage: every shard of the corpus becomes a shard of units, for each codebook.

In: corpus, encoder and one codebook per key. Out, per key: ``shards/000/000017.parquet``, the table
of utterances with their units; ``left_out.parquet`` and ``quarantine.parquet``, the recordings of
which nothing is used, and why. A shard that is there is done: a later attempt does what is missing.
The encoder runs once per shard, up to the highest layer that a codebook is of, however many
codebooks want it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from jobs import text_model
from jobs.attempt import Attempt, run_stage
from jobs.audio.corpus_tables import QUARANTINE_SCHEMA, CorpusTables, create_table
from jobs.audio.mapped_tables import chunked
from jobs.speech.account import Account, Books, Fate
from jobs.speech.pool import stage_pool
from jobs.speech.units import (
    EncoderSpec,
    ShardResult,
    ShardStats,
    ShardTask,
    Tokenizer,
    WantedUnits,
    name_of,
    view_of,
)
from jobs.speech.utterances import read_corpus, source_roots
from jobs.unit_shards import QUARANTINE, missing_shards, read_shard, shard_path
from orchestrator.errors import DataError
from orchestrator.ledger.storage import Storage
from orchestrator.quantities import SAMPLE_RATE_HZ

log = logging.getLogger(__name__)

_READERS, _READ_AHEAD = 8, 1_024
LEFT_OUT = "left_out.parquet"


def work(attempt: Attempt) -> dict[str, Any]:
    """Write every missing shard; returns what the units are like, per key."""
    text_model.require_all(attempt)
    tables, shards = read_corpus(attempt), Shards.of(attempt)
    of_corpus = attempt.upstream["corpus"].facts
    num_listed = tables.num_rows + of_corpus["num_left_out"] + of_corpus["num_quarantined"]
    most_percent = attempt.recipe.corpus.max_quarantine_percent
    for result in _tokenized(attempt, tables, shards) if shards.missing else ():
        shards.add(result)
        shards.require_readable(num_listed, most_percent)
    shards.add_earlier()
    shards.require_readable(num_listed, most_percent)
    return ended(attempt, shards, num_shards=tables.num_shards)


class Shards:
    """The shards of some outputs: which are missing, and what they hold."""

    def __init__(
        self, num_shards: int, outs: Sequence[Storage], num_clusters: Sequence[int]
    ) -> None:
        """``num_clusters``: of the codebook of each output."""
        self._num_shards, self._outs, self._num_clusters = num_shards, outs, num_clusters
        self.missing = missing_shards(range(num_shards), outs)
        """For each shard that some output misses, the positions of those outputs."""
        self.books = [Books() for _ in outs]
        self.totals = [ShardStats(0, 0, np.zeros(k, np.int64)) for k in num_clusters]
        """What each output holds."""
        self.given_up: dict[int, DataError] = {}
        """Outputs that are not made to their end, and why."""

    @classmethod
    def of(cls, attempt: Attempt) -> Shards:
        """Those of an attempt."""
        num_clusters = [u["codebook"].facts["num_clusters"] for u in attempt.upstreams]
        num_shards = attempt.upstream["corpus"].facts["num_shards"]
        return cls(num_shards, attempt.outs, num_clusters)

    def add(self, result: ShardResult) -> None:
        """Count what was made of a shard."""
        for which, stats in result.stats.items():
            self.books[which].add(result.shard, result.accounts[which])
            self.totals[which] += stats

    def require_readable(self, num_listed: int, most_percent: float) -> None:
        """Give up outputs of which more recordings are unreadable than the recipe allows.

        Raises DataError when all are: features may hold no numbers in one layer alone.
        """
        for which, books in enumerate(self.books):
            if which not in self.given_up:
                try:
                    books.require_readable(num_listed, most_percent)
                except DataError as error:
                    self.given_up[which] = error
        if len(self.given_up) == len(self.books):
            raise self.given_up[0]

    def wanted_of(self, shard: int) -> list[int]:
        """Positions of the outputs that it is still to be made for."""
        return [which for which in self.missing[shard] if which not in self.given_up]

    def add_earlier(self) -> None:
        """Count what earlier attempts have made; after the rest, since a killed one has read it."""
        earlier = (
            (which, shard)
            for which in range(len(self._outs))
            for shard in range(self._num_shards)
            if which not in self.missing.get(shard, ())
        )
        with ThreadPoolExecutor(_READERS) as threads:
            for some in chunked(earlier, _READ_AHEAD):
                for result in threads.map(self._read, some):
                    self.add(result)

    def _read(self, which_shard: tuple[int, int]) -> ShardResult:
        which, shard = which_shard
        table = read_shard(self._outs[which].read_bytes(shard_path(shard)))
        stats = {which: ShardStats.of(table, self._num_clusters[which])}
        return ShardResult(shard=shard, accounts={which: Account.of(table)}, stats=stats)


def ended(attempt: Attempt, shards: Shards, *, num_shards: int) -> dict[str, Any]:
    """Complete what is not given up; the facts of all.

    Raises DataError where some are given up, which it names, after the others are published.
    """
    about = facts(attempt.keys, shards, num_shards=num_shards)
    for which, (out, books) in enumerate(zip(attempt.outs, shards.books, strict=True)):
        if which not in shards.given_up:
            write_fates(out, books)
    if not shards.given_up:
        return about
    per_key = about.pop("per_key")
    for which, key in enumerate(attempt.keys):
        if which not in shards.given_up:
            attempt.publish(key, {**about, **per_key[key]})
    names = [name_of(recipe) for recipe in attempt.each_recipe]
    failed = sorted(shards.given_up.items())
    raise DataError("; ".join(f"units of {names[which]}: {error}" for which, error in failed))


def write_fates(out: Storage, books: Books) -> None:
    """Write the tables of recordings of which nothing is used."""
    for path, fate in ((LEFT_OUT, Fate.LEFT_OUT), (QUARANTINE, Fate.UNREADABLE)):
        rows = [{"id": o.id, "source": o.source, "reason": o.reason} for o in books.of_fate(fate)]
        create_table(out, path, pa.Table.from_pylist(rows, QUARANTINE_SCHEMA))


def facts(keys: Sequence[str], shards: Shards, *, num_shards: int) -> dict[str, Any]:
    """What the manifests say, each of its own units."""
    per_key = {
        key: {
            "num_utterances": total.num_utterances,
            "audio_s": total.audio_s,
            **books.facts(),
            "num_tokens": total.num_tokens,
            "unit_entropy_bits": total.entropy_bits,
        }
        for key, total, books in zip(keys, shards.totals, shards.books, strict=True)
    }
    return {"num_shards": num_shards, "per_key": per_key}


def _wanted(attempt: Attempt) -> list[WantedUnits]:
    return [
        WantedUnits(
            view=view_of(recipe.encoder),
            codebook_url=upstream["codebook"].storage.url,
            out_url=out.url,
        )
        for recipe, upstream, out in zip(
            attempt.each_recipe, attempt.upstreams, attempt.outs, strict=True
        )
    ]


def _tokenized(attempt: Attempt, tables: CorpusTables, shards: Shards) -> Iterable[ShardResult]:
    """Let the pool make the missing shards; what each holds, as they are completed."""
    total, samples, recipe = tables.num_shards, 0, attempt.recipe
    before = total - len(shards.missing)
    attempt.progress(before, total, "shards")
    wanted = _wanted(attempt)
    url, views = attempt.upstream["encoder"].storage.url, [one.view for one in wanted]
    spec = EncoderSpec.up_to(views, url, recipe.encoder.precision)
    where = (source_roots(attempt), recipe.corpus.windows)

    def task(shard: int) -> ShardTask:
        return ShardTask(shard=shard, rows=tables.shard(shard), missing=shards.wanted_of(shard))

    dedup = recipe.tokenizer.deduplicate
    with stage_pool(attempt, Tokenizer, spec, *where, wanted, dedup) as pool:
        started_at, decoded, passed_over, ties = time.monotonic(), 0, 0, 0
        results = pool.run(shards.missing, task, tick=attempt.check)
        for done, (_, result) in enumerate(results, start=before + 1):
            samples += max((stats.num_samples for stats in result.stats.values()), default=0)
            decoded += result.decoded_samples
            passed_over += result.passed_over_samples
            ties += result.num_ties
            rate = samples / SAMPLE_RATE_HZ / (time.monotonic() - started_at)
            attempt.progress(done, total, "shards", audio_s_per_s=round(rate, 1))
            yield result
        samples_of = {"used": samples, "decoded": decoded, "passed_over": passed_over}
        hours = {name: round(n / SAMPLE_RATE_HZ / 3600, 3) for name, n in samples_of.items()}
        attempt.event("heard", hours=hours, num_ties=ties)
        log.info("hours of audio: %s; %d units are ties to fp32's rounding", hours, ties)


if __name__ == "__main__":
    sys.exit(run_stage("tokenize", work))
