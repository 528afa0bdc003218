"""The tokenize stage: every shard of the corpus becomes a shard of units, for each codebook.

In: corpus, encoder and one codebook per key. Out: ``shards/000/000017.parquet`` per key. A shard
that is there is done: a later attempt does what is missing. HuBERT runs once per shard, however
many codebooks want it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jobs import text_model
from jobs.attempt import Attempt, run_stage
from jobs.speech.pool import stage_pool
from jobs.speech.units import (
    EncoderSpec,
    ShardStats,
    ShardTask,
    Tokenizer,
    shard_path,
)
from jobs.speech.utterances import CorpusRows, read_corpus, source_roots
from orchestrator.ledger.storage import Storage
from orchestrator.quantities import SAMPLE_RATE_HZ

_READERS = 8


def work(attempt: Attempt) -> dict[str, Any]:
    """Write every missing shard; returns what the units are like, per key."""
    text_model.require_all(attempt)
    rows = read_corpus(attempt)
    num_clusters = [u["codebook"].facts["num_clusters"] for u in attempt.upstreams]
    missing = missing_shards(rows.shards, attempt.outs)
    made = _tokenized(attempt, rows, missing) if missing else ()
    totals = total_stats(attempt.outs, rows.shards, missing, made, num_clusters)
    return facts(attempt.keys, totals, num_shards=len(rows.shards))


def missing_shards(shards: Iterable[int], outs: Sequence[Storage]) -> dict[int, tuple[int, ...]]:
    """For each shard that some output misses, the positions of those outputs."""
    present = [out.list("shards") for out in outs]
    missing = {
        shard: tuple(i for i, paths in enumerate(present) if shard_path(shard) not in paths)
        for shard in shards
    }
    return {shard: which for shard, which in missing.items() if which}


def facts(keys: Sequence[str], totals: Sequence[ShardStats], *, num_shards: int) -> dict[str, Any]:
    """What the manifests say: the audio is the same for all keys, the units are each key's own."""
    per_key = {
        key: {"num_tokens": total.num_tokens, "unit_entropy_bits": total.entropy_bits}
        for key, total in zip(keys, totals, strict=True)
    }
    return {
        "num_shards": num_shards,
        "num_utterances": totals[0].num_utterances,
        "audio_s": totals[0].audio_s,
        "per_key": per_key,
    }


def total_stats(
    outs: Sequence[Storage],
    shards: Sequence[int],
    missing: Mapping[int, tuple[int, ...]],
    made: Iterable[dict[int, ShardStats]],
    num_clusters: Sequence[int],
) -> list[ShardStats]:
    """What each output holds in all, once ``made`` has given what this attempt adds.

    Shards of earlier attempts are read after that: an attempt that is killed has read none.
    """
    stats: list[list[ShardStats]] = [[] for _ in outs]
    for by_output in made:
        for which, part in by_output.items():
            stats[which].append(part)
    for which, out in enumerate(outs):
        earlier = [s for s in shards if which not in missing.get(s, ())]
        stats[which] += _read_stats(out, earlier, num_clusters[which])
    return [ShardStats.sum(parts) for parts in stats]


def _read_stats(out: Storage, shards: Sequence[int], num_clusters: int) -> list[ShardStats]:
    def read(shard: int) -> ShardStats:
        return ShardStats.of(out.read_bytes(shard_path(shard)), num_clusters)

    with ThreadPoolExecutor(_READERS) as threads:
        return list(threads.map(read, shards))


def _tokenized(
    attempt: Attempt, rows: CorpusRows, missing: dict[int, tuple[int, ...]]
) -> Iterable[dict[int, ShardStats]]:
    """Let the pool make the missing shards; what each holds, by output, as they are completed."""
    total, samples, encoder = len(rows.shards), 0, attempt.recipe.encoder
    before = total - len(missing)
    attempt.progress(before, total, "shards")
    spec = EncoderSpec(
        url=attempt.upstream["encoder"].storage.url,
        layer=encoder.layer,
        precision=encoder.precision,
    )
    codebooks = [upstream["codebook"].storage.url for upstream in attempt.upstreams]
    outs = [out.url for out in attempt.outs]
    dedup = attempt.recipe.tokenizer.deduplicate

    def task(shard: int) -> ShardTask:
        return ShardTask(shard=shard, utterances=rows.of_shard(shard), missing=missing[shard])

    with stage_pool(
        attempt, Tokenizer, spec, source_roots(attempt), codebooks, outs, dedup
    ) as pool:
        started_at = time.monotonic()
        results = pool.run(missing, task, tick=attempt.check)
        for done, (_, by_output) in enumerate(results, start=before + 1):
            samples += next(iter(by_output.values())).num_samples
            rate = samples / SAMPLE_RATE_HZ / (time.monotonic() - started_at)
            attempt.progress(done, total, "shards", audio_s_per_s=round(rate, 1))
            yield by_output


if __name__ == "__main__":
    sys.exit(run_stage("tokenize", work))
