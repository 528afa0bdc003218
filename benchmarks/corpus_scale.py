"""How a corpus of 150,000 hours is held: its tables, and its shards handed to workers.

``python -m benchmarks.corpus_scale --hours 150000 --shards 20000``. Recordings are made up, 30 s
each; everything else is what the stages do: listed rows sorted and written in pieces, shared out,
a sample drawn, shards handed to real Ray actors that return an account each, which is booked. Times
are of one process on this machine; memory is its peak.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from jobs.audio import places
from jobs.audio.corpora.recording import Recording
from jobs.audio.corpus_tables import CorpusTables, Expected, ShardRows, share_out
from jobs.audio.listing import Listing, ListingTables
from jobs.audio.roots import Root
from jobs.audio.trees import Leaf
from jobs.corpus import facts, write_tables
from jobs.ray_session import session
from jobs.speech.account import Account, Fate, Outcome
from jobs.speech.pool import Pool
from jobs.speech.sample import Measured, MeasureTask, draw
from jobs.speech.units import ShardResult, ShardStats
from jobs.tokenize import Shards
from jobs.unit_shards import shard_path
from orchestrator.ledger.storage import Storage
from orchestrator.spec.cluster import Resources
from orchestrator.spec.recipe import Corpus, Source

_RECORDING_S = 30
_SOURCE = Source(name="made-up", language="en")
_CHUNK = 65_536


class Answering:
    """A worker that says of each shard that all of it is used, which takes it no time."""

    def __call__(self, task: tuple[int, ShardRows]) -> ShardResult:
        """The shard's account."""
        shard, parts = task[0], task[1].parts()
        size = _RECORDING_S * 16_000
        edges = [
            Outcome(p.row.id, p.row.source, Fate.USED, "", size, 0) for p in (parts[0], parts[-1])
        ]
        between = Counter({_SOURCE.name: len(parts) - len(edges)})
        account = Account(
            tuple(edges), (), between, Counter({_SOURCE.name: size * len(parts)}), Counter()
        )
        stats = ShardStats(len(parts), size * len(parts), np.ones(10, np.int64))
        return ShardResult(shard=shard, account=account, stats={0: stats})


def main() -> int:
    """Print one line for each thing that was measured; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=150_000)
    parser.add_argument("--shards", type=int, default=20_000, help="how many are handed out")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus(sources=(_SOURCE,))
        roots = {_SOURCE.name: Root(Path(folder))}
        out = Storage(f"{folder}/corpus")
        _make(out, corpus, roots, int(options.hours * 3600 / _RECORDING_S))
        with _measured("tables opened"):
            tables = CorpusTables(out, places.folder_of(roots))
        with _measured("a sample of 10 h drawn"):
            drawn = draw(tables, 10, 0, corpus.windows, lambda tasks: map(_found, tasks))
        print(f"{tables.num_rows:,} recordings, {tables.num_shards:,} shards, {len(drawn):,} drawn")
        _hand_out(tables, f"{folder}/units", options.shards, options.workers)
    return 0


def _make(out: Storage, corpus: Corpus, roots: dict[str, Root], num_recordings: int) -> None:
    """Write the artifact of a corpus whose files nobody needs to have."""
    with closing(ListingTables()) as tables, _measured(f"{num_recordings:,} rows listed"):
        for start in range(0, num_recordings, _CHUNK):
            upto = min(start + _CHUNK, num_recordings)
            tables.add(corpus, _SOURCE, [_recording(n) for n in range(start, upto)])
    with _measured("sorted"):
        listing: Listing = tables.listing()
    lengths = np.full(listing.wanted.num_rows, _RECORDING_S * 16_000, np.int64)
    with _measured("shared out"):
        expected = Expected.of(listing.wanted["spans_s"], lengths, corpus.windows)
        shards = share_out(*expected, corpus.shard_hours)
    with _measured("written"):
        places.create(out, roots, listing.wanted)
        write_tables(out, listing, lengths, shards)
        facts(listing, expected.samples, num_shards=shards.num_rows - 1)


def _recording(number: int) -> Recording:
    name = f"large/{number % 7_000}/book_{number % 90_000}/chapter_{number:08d}_64kb"
    leaf = Leaf(f"{name}.flac", 400_000)
    return Recording(
        name, leaf, language="en", speaker=str(number % 7_000), session=str(number % 90_000)
    )


def _found(task: MeasureTask) -> list[Measured]:
    size = _RECORDING_S * 16_000
    return [Measured(p.row.number, 0, size, p.row.id) for p in task.parts]


def _hand_out(tables: CorpusTables, url: str, num_shards: int, num_workers: int) -> None:
    """Give shards to actors, and book what they return."""
    num_shards = min(num_shards, tables.num_shards)
    shards = Shards(num_shards, [Storage(url)], [10])
    size = Resources(min_workers=num_workers, max_workers=num_workers)
    with session("", num_cpus=num_workers), Pool(Answering, size=size) as pool:
        results = pool.run(shards.missing, lambda shard: (shard, tables.shard(shard)))
        shards.add(next(results)[1])  # the actors are up
        with _measured("handed out and booked", num_shards - 1):
            for _, result in results:
                shards.add(result)
    for shard in range(num_shards):
        path = Path(url, shard_path(shard))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with _measured("finished shards found", num_shards):
        assert not Shards(num_shards, [Storage(url)], [10]).missing


@contextmanager
def _measured(what: str, count: int = 0) -> Iterator[None]:
    started_at = time.perf_counter()
    yield
    took_s = time.perf_counter() - started_at
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    arrow_gb = pa.total_allocated_bytes() / 1e9
    rate = f", {count / took_s:,.0f} a second" if count else ""
    print(f"{what:32} {took_s:8.1f} s{rate}; peak {peak_gb:.1f} GB, Arrow holds {arrow_gb:.1f} GB")


if __name__ == "__main__":
    sys.exit(main())
