"""What a corpus of 150,000 hours costs: its tables, ``plan``, ``status`` and the stage's driver.

``python -m benchmarks.corpus_scale --full`` has 18 million recordings in 150,000 shards; without
it, a sixtieth of them. Recordings are made up, 30 s each, in no order; all else is what the stages
do: files sorted, rows listed, sorted, dealt out, written in pieces, opened; ``orchestrator plan``
and ``status`` as processes; shards handed to real Ray actors that return an account each, which is
booked. Memory is what a process cannot give back: pages of mapped files are not in it.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.audio import places
from jobs.audio.corpora.recording import Recording, by_stem
from jobs.audio.corpus_tables import CorpusTables, Expected, ShardRows, share_out
from jobs.audio.headers import Headers
from jobs.audio.listing import Listing, ListingTables
from jobs.audio.mapped_tables import chunked
from jobs.audio.roots import Root
from jobs.audio.same_ids import SameIds
from jobs.audio.trees import Leaf, in_order
from jobs.corpus import facts, told_apart, write_tables
from jobs.enough_audio import require_enough, require_splits
from jobs.ray_session import session
from jobs.speech.account import Account, Fate, Outcome
from jobs.speech.pool import Pool
from jobs.speech.sample import Measured, MeasureTask, draw
from jobs.speech.units import ShardResult, ShardStats
from jobs.tokenize import Shards, write_fates
from jobs.unit_shards import SCHEMA as UNITS_SCHEMA
from jobs.unit_shards import shard_path
from orchestrator.control.executor import Request
from orchestrator.control.request import prepare
from orchestrator.ledger.artifact import Artifact
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage
from orchestrator.spec.cluster import Resources
from orchestrator.spec.recipe import Recipe, Windows

_RECORDING_S = 30
_RECORDING_SAMPLES = _RECORDING_S * 16_000
_SOURCE = "made-up"
_NUM_UNITS = 500
_ROWS = 120
"""Of a shard of an hour."""
_MOST_RESUMED = 10_000
"""More would only take longer."""
_RECIPES = Path(__file__).parent.parent / "recipes"
_RUN = "large"


class Answering:
    """A worker that says of each shard that all of it is used, which takes it no time."""

    def __call__(self, task: tuple[int, ShardRows]) -> ShardResult:
        """The shard's account."""
        shard, parts = task[0], task[1].parts()
        size = _RECORDING_SAMPLES
        edges = [
            Outcome(p.row.id, p.row.source, Fate.USED, "", size, 0) for p in (parts[0], parts[-1])
        ]
        between = Counter({_SOURCE: len(parts) - len(edges)})
        used = Counter({_SOURCE: size * len(parts)})
        account = Account(tuple(edges), (), between, used, Counter())
        stats = ShardStats(len(parts), size * len(parts), np.ones(_NUM_UNITS, np.int64))
        return ShardResult(shard=shard, accounts={0: account}, stats={0: stats})


class CountedStorage(Storage):
    """A folder of the store that counts what it is asked."""

    num_calls = 0

    def __getattribute__(self, name: str) -> Any:
        """A member; those that are called are calls of the store."""
        found = super().__getattribute__(name)
        if callable(found) and not name.startswith("_"):
            CountedStorage.num_calls += 1
        return found


def main() -> int:
    """Print one line for each thing that was measured; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="150,000 hours instead of 2,500")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", help="where to work; kept, and gone on with")
    parser.add_argument("--drive", nargs=2, metavar=("STORE", "SHARDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        folder, num_shards = options.drive
        _drive(Path(folder), int(num_shards), options.workers)
        return 0
    hours = 150_000 if options.full else 2_500
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or temporary
        request = _request(Path(folder))
        if not _artifact(request, "corpus").is_complete():
            _make(request, _roots(request), hours * 3600 // _RECORDING_S)
        _open(request)
        _ask(request, Path(folder))
        for num_shards in (1_000, 10_000, 150_000) if options.full else (100, 1_000):
            command = [sys.executable, "-m", __spec__.name, "--workers", str(options.workers)]
            subprocess.run([*command, "--drive", folder, str(num_shards)], check=True)
    return 0


def _request(folder: Path) -> Request:
    """The paper's recipe for the made-up corpus, on a cluster that is this machine."""
    source = f"{{name: {_SOURCE}, adapter: folder, language: en}}"
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(
        f"extends: {_RECIPES}/twist-350m.yaml\n"
        f"name: {_RUN}\ncorpus: {{sources: [{source}], shard_hours: 1.0}}\n"
    )
    (folder / "cluster.yaml").write_text(
        f"backend: local\nstore: {folder}/store\ndata: {{{_SOURCE}: {folder}/audio}}\n"
    )
    return prepare(folder / "recipe.yaml", folder / "cluster.yaml", [], None)


def _roots(request: Request) -> dict[str, Root]:
    return {_SOURCE: Root(Path(request.cluster.data_roots[_SOURCE].root))}


def _artifact(request: Request, stage: str) -> Artifact:
    instance = next(i for i in request.plan.instances if i.stage == stage)
    return request.store.artifact(stage, instance.key)


def _make(request: Request, roots: dict[str, Root], num_recordings: int) -> None:
    """Make the artifact of a corpus whose files nobody needs to have, as its stage does."""
    recipe, artifact = request.recipe, _artifact(request, "corpus")
    listing = _list(recipe, num_recordings)
    with _measured("shared out"):
        require_splits(listing.wanted, recipe.split)
        ones = np.ones(num_recordings, np.int64)
        listing, lengths = told_apart(
            recipe.corpus, listing, Headers(ones * _RECORDING_SAMPLES, ones)
        )
        expected = Expected.of(listing.wanted["spans_s"], lengths, recipe.corpus.windows)
        samples = expected.samples
        require_enough([recipe], listing.wanted.append_column("num_samples", [samples]))
        shards = share_out(*expected, recipe.corpus.shard_hours)
    with _measured("written"):
        places.create(artifact.storage, places.folder_of(roots), listing.wanted)
        write_tables(artifact.storage, listing, lengths, shards)
        about = facts(listing, samples, num_shards=shards.num_rows - 1)
        artifact.begin({})
        artifact.publish(inputs={}, facts=about, producer={})


def _list(recipe: Recipe, num_recordings: int) -> Listing:
    """The recordings, as if they were files of a folder."""
    (source,) = recipe.corpus.sources
    with closing(ListingTables()) as tables:
        with _measured(f"{num_recordings:,} files in order"):
            files = in_order(_files(num_recordings))
            first = next(files)
        with _measured("recordings listed"):
            ids = SameIds()
            named = by_stem(itertools.chain([first], files))
            for chunk in chunked(itertools.starmap(_recording, named)):
                tables.add(recipe.corpus, source, chunk)
                ids.add(chunk)
            assert not ids.problem([])
        with _measured("sorted"):
            return tables.listing()


def _files(num_recordings: int) -> Iterator[Leaf]:
    """What a walk finds, which is in no order."""
    for number in range(num_recordings):
        yield Leaf(f"{number % 7_000}/book_{number % 90_000}/chapter_{number:08d}.flac", 400_000)


def _recording(name: str, leaf: Leaf) -> Recording:
    speaker, book, _ = name.split("/")
    return Recording(name, leaf, language="en", speaker=speaker, session=book)


def _open(request: Request) -> None:
    """What a stage does that reads the corpus."""
    with _measured("tables opened, enough"):
        tables = CorpusTables(
            _artifact(request, "corpus").storage, places.folder_of(_roots(request))
        )
        windows = request.recipe.corpus.windows
        require_enough([request.recipe], tables.samples_by_recording(windows))
    with _measured("a sample of 10 h drawn"):
        drawn = draw(tables, 10, 0, windows, lambda tasks: map(_found, tasks))
    print(f"{tables.num_rows:,} recordings, {tables.num_shards:,} shards, {len(drawn):,} drawn")


def _found(task: MeasureTask) -> list[Measured]:
    return [Measured(p.row.number, 0, _RECORDING_SAMPLES, p.row.id) for p in task.parts]


def _ask(request: Request, folder: Path) -> None:
    """Run ``plan`` and ``status`` where half of the shards are made."""
    num_shards = _artifact(request, "corpus").facts["num_shards"]
    units = _artifact(request, "tokenize").storage
    for shard in range(num_shards // 2):
        path = Path(units.url, shard_path(shard))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    RunFolder(request.store.run_storage(_RUN)).create(
        request.plan, request.recipe, request.cluster, {}, {}
    )
    cluster = ["--cluster", str(folder / "cluster.yaml")]
    _process("plan", ["plan", str(folder / "recipe.yaml"), *cluster])
    _process("status", ["status", _RUN, *cluster])


def _process(what: str, arguments: Sequence[str]) -> None:
    started_at, peak_kb = time.perf_counter(), 0
    command = [sys.executable, "-m", "orchestrator.cli.main", *arguments]
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(command, stdout=said, stderr=said)
        status = Path(f"/proc/{child.pid}/status")
        while child.poll() is None:
            found = re.search(r"VmHWM:\s+(\d+)", status.read_text())
            peak_kb = int(found[1]) if found else peak_kb
            time.sleep(0.02)
        took_s = time.perf_counter() - started_at
        said.seek(0)
        assert not child.returncode, said.read().decode()
    print(f"{what:28} {took_s:8.1f} s; memory {peak_kb * 1024 / 1e9:.2f} GB at most")


def _drive(folder: Path, num_shards: int, num_workers: int) -> None:
    """Hand shards to actors, and book what they return: what the tokenize stage's driver does."""
    request = _request(folder)
    corpus = CountedStorage(_artifact(request, "corpus").storage.url)
    units = CountedStorage(f"{folder}/units-{num_shards}")
    size = Resources(min_workers=num_workers, max_workers=num_workers)
    with session("", num_cpus=num_workers), Pool(Answering, size=size) as pool:
        CountedStorage.num_calls = 0
        with _measured("tables opened, enough"):
            tables = CorpusTables(corpus, places.folder_of(_roots(request)))
            require_enough([request.recipe], tables.samples_by_recording(Windows()))
        opened = CountedStorage.num_calls
        shards = Shards(num_shards, [units], [_NUM_UNITS])
        results = pool.run(shards.missing, lambda shard: (shard, tables.shard(shard)))
        shards.add(next(results)[1])  # the actors are up
        with _measured(f"{num_shards:,} shards driven", num_shards - 1):
            for _, result in results:
                shards.add(result)
                shards.require_readable(tables.num_rows, 1)
            write_fates(units, shards.books[0])
    print(f"store calls: {opened} to open, {CountedStorage.num_calls - opened} besides")
    if num_shards <= _MOST_RESUMED:
        _resume(units, num_shards)


def _resume(units: CountedStorage, num_shards: int) -> None:
    """Count what an earlier attempt has made: what the next one's driver does."""
    _make_units(Path(units.url), num_shards)
    CountedStorage.num_calls = 0
    with _measured(f"{num_shards:,} shards found", num_shards):
        shards = Shards(num_shards, [units], [_NUM_UNITS])
        shards.add_earlier()
    assert shards.books[0].facts()["num_recordings"] == num_shards * _ROWS
    print(f"store calls: {CountedStorage.num_calls}")


def _make_units(folder: Path, num_shards: int) -> None:
    """Write shards of units, each with recordings of its own."""
    row = {"units": [7] * 50, "num_samples": _RECORDING_SAMPLES, "source": _SOURCE}
    table = pa.Table.from_pylist([row] * _ROWS, UNITS_SCHEMA)
    column = table.column_names.index("recording")
    for shard in range(num_shards):
        path = folder / shard_path(shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        names = pa.array([f"{_SOURCE}/{shard}/{number}" for number in range(_ROWS)])
        pq.write_table(table.set_column(column, "recording", names), path)


@contextmanager
def _measured(what: str, count: int = 0) -> Iterator[None]:
    """Print how long it took and how much memory the process had at most meanwhile."""
    started_at, before = time.perf_counter(), _anonymous_gb()
    peak, is_over = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_over.wait(0.05):
            peak = max(peak, _anonymous_gb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()
    took_s = time.perf_counter() - started_at
    rate = f" ({count / took_s:,.0f} a second)" if count else ""
    print(f"{what:28} {took_s:8.1f} s{rate}; memory {before:.2f} GB before, {peak:.2f} at most")


def _anonymous_gb() -> float:
    """Memory of this process that no file holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    sys.exit(main())
