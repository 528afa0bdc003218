"""The corpus stage: which recordings there are, and which shard each belongs to.

In: the recipe's sources below the cluster's roots. Out: `jobs.audio.corpus_tables`, in the order
of sources and ids, so that the same audio gives the same bytes. Only headers are read: lengths are
what shards are balanced by, and whoever decodes a recording knows its own. Lengths are stored block
by block on the way, which is where a killed attempt goes on.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs import text_model
from jobs.attempt import Attempt, run_stage
from jobs.audio import each_channel, headers, places
from jobs.audio.corpus_tables import (
    RECORDINGS_SCHEMA,
    Expected,
    create_table,
    leaf_of,
    piece_path,
    pieces_of,
    read_table,
    share_out,
)
from jobs.audio.decode import UnreadableAudioError
from jobs.audio.decoders import Decoders
from jobs.audio.headers import Header, Headers
from jobs.audio.listing import Listing, list_corpus
from jobs.audio.place import Place
from jobs.audio.roots import Root, RootWatch
from jobs.audio.trees import Leaf
from jobs.enough_audio import require_enough, require_splits
from jobs.speech.account import require_readable
from jobs.speech.pool import stage_pool
from jobs.speech.utterances import source_roots
from orchestrator.errors import DataError
from orchestrator.ledger.storage import Storage
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Corpus

_BLOCK = 4_096
"""Recordings whose headers are read between two writes."""
_READERS, _NAMED = 8, 4
_HEADERS_SCHEMA = pa.schema([(name, pa.int64()) for name in Headers._fields])

log = logging.getLogger(__name__)


def work(attempt: Attempt) -> dict[str, Any]:
    """List, measure and share out; the corpus' facts."""
    text_model.require_all(attempt)
    corpus, roots = attempt.recipe.corpus, source_roots(attempt)
    watches = {name: RootWatch(name, root.path) for name, root in roots.items()}
    where = places.folder_of(roots)
    empty = set[str]()
    listing = list_corpus(corpus, roots, empty.add)
    require_roots(watches, roots)  # or what is missing may be so because all of it is
    require_usable(corpus, listing)
    for shares in {r.split for r in attempt.all_recipes} if attempt.scope.splits else ():
        # Before the headers of millions of files are read.
        require_splits(listing.wanted, shares)
    read = Scan(attempt, roots).headers(listing.wanted)
    require_roots(watches, roots, listing.wanted)
    listing, lengths = told_apart(corpus, listing, read)
    expected = Expected.of(listing.wanted["spans_s"], lengths, corpus.windows)
    samples = expected.samples
    with_samples = listing.wanted.append_column("num_samples", pa.array(samples))
    require_enough(attempt.all_recipes, with_samples, attempt.scope)
    places.create(attempt.out, where, listing.wanted)
    shards = share_out(*expected, corpus.shard_hours)
    write_tables(attempt.out, listing, lengths, shards)
    say_what_is_not_used(listing)
    about = facts(listing, samples, num_shards=shards.num_rows - 1)
    return {**about, **empty_folders(empty)}


def require_roots(
    watches: Mapping[str, RootWatch], roots: Mapping[str, Root], read: pa.Table | None = None
) -> None:
    """Raises BackendError when a root is another one than at the start, or is not there any more.

    ``read``: rows whose files have been read; the first of each source must still open.
    """
    for name, watch in watches.items():
        if read is not None and (first := pc.index(read["source"], name).as_py()) >= 0:
            watch.has_read(roots[name].place(leaf_of(read.slice(first, 1).to_pylist()[0])).file)
        watch.require()


def require_usable(corpus: Corpus, listing: Listing) -> None:
    """Raise DataError when a source gives nothing, or too much cannot be opened.

    A source of which ``data_fraction`` takes nothing is no fault where another gives something.
    """
    num_listed = sum(table.num_rows for table in listing)
    bad = listing.quarantine.to_pylist()
    reasons = {row["id"]: row["reason"] for row in bad}
    require_readable(reasons, num_listed, corpus.max_quarantine_percent)
    giving = set(pc.unique(listing.wanted["source"]).to_pylist())
    if not giving:
        raise DataError(f"corpus: {nothing_wanted(corpus, listing)}")
    for name in (s.name for s in corpus.sources if s.name not in giving):
        of_source = Listing(*(table.filter(pc.field("source") == name) for table in listing))
        if of_source.quarantine.num_rows or not _reasons(of_source)["data_fraction"]:
            raise DataError(f"corpus.sources: {name}: {nothing_wanted(corpus, of_source)}")


def nothing_wanted(corpus: Corpus, listing: Listing) -> str:
    """Why there is nothing to be used."""
    reasons = _reasons(listing)
    if unreadable := listing.quarantine.num_rows:
        first = listing.quarantine.slice(0, 1).to_pylist()[0]
        num_listed = unreadable + listing.left_out.num_rows
        return (
            f"{unreadable} of {num_listed} recordings cannot be read, the first is {first['id']}: "
            f"{first['reason']}, and no other is wanted; repair them, or check the cluster's data"
        )
    if in_language := reasons["data_fraction"]:
        return (
            f"data_fraction: {corpus.data_fraction:g} of {in_language} recordings is none "
            "of them; raise it or add recordings"
        )
    if reasons and not reasons["language"]:
        why = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common(_NAMED))
        return f"every recording is left out ({why}); see whether the data are complete"
    names = pc.unique(listing.left_out["language"]).to_pylist()
    said = [name for name in names if name]
    if names and not said:
        return (
            f"of {listing.left_out.num_rows} recordings none has a language that the adapter "
            "finds; check the source's adapter and the cluster's data, or set sources[].language"
        )
    unsaid = ["some without"] * (len(said) < len(names))
    found = ", ".join(sorted(said) + unsaid) or "no audio files at all"
    return (
        f"no recording in {', '.join(corpus.languages)} (found: {found}); "
        "check corpus.languages, the source's adapter and language, and the cluster's data"
    )


def _reasons(listing: Listing) -> Counter[str]:
    """How many recordings are left out for which reason."""
    counted = pc.value_counts(listing.left_out["reason"]).to_pylist()
    return Counter({one["values"]: one["counts"] for one in counted})


def say_what_is_not_used(listing: Listing) -> None:
    """Log how many recordings are left out and why, and the first that are quarantined."""
    reasons = _reasons(listing).most_common()
    for reason, count in reasons[:_NAMED]:
        log.info("left out, %s: %d", reason, count)
    if others := sum(count for _, count in reasons[_NAMED:]):
        log.info("left out for other reasons: %d", others)
    for row in listing.quarantine.slice(0, _NAMED).to_pylist():
        log.info("quarantined: %s: %s", row["id"], row["reason"])
    if (others := listing.quarantine.num_rows - _NAMED) > 0:
        log.info("quarantined besides: %d", others)


def empty_folders(found: Set[str]) -> dict[str, Any]:
    """Facts on folders that hold nothing, and a warning; nothing where there are none.

    Such a folder may be one where something was to be mounted: nobody can tell.
    """
    if not found:
        return {}
    first = sorted(found)[:_NAMED]
    names = ", ".join(first) + (", and so on" if len(found) > len(first) else "")
    log.warning(
        "%d folders hold nothing (%s); see that what belongs there is mounted", len(found), names
    )
    return {"num_empty_folders": len(found), "empty_folders": first}


def told_apart(
    corpus: Corpus, listing: Listing, read: Headers
) -> tuple[Listing, npt.NDArray[np.int64]]:
    """With a recording of each channel where the recipe says so, and the lengths of all."""
    each = [source.name for source in corpus.sources if source.channels == "each"]
    wanted, lengths = each_channel.split(listing.wanted, read, each)
    return listing._replace(wanted=wanted), lengths


def write_tables(
    out: Storage, listing: Listing, lengths: npt.NDArray[np.int64], shards: pa.Table
) -> None:
    """Write the artifact's tables."""
    wanted = listing.wanted.append_column("header_samples", pa.array(lengths))
    for number, piece in enumerate(pieces_of(wanted.select(RECORDINGS_SCHEMA.names))):
        create_table(out, piece_path("recordings", number), piece)
    create_table(out, "shards.parquet", shards)
    create_table(out, "left_out.parquet", listing.left_out)
    create_table(out, "quarantine.parquet", listing.quarantine)


def facts(listing: Listing, samples: npt.NDArray[np.int64], *, num_shards: int) -> dict[str, Any]:
    """What the manifest says; hours are those that headers promise."""
    tables = zip(("num_recordings", "num_left_out", "num_quarantined"), listing, strict=True)
    counts = {name: _by_source(table) for name, table in tables}
    kept = listing.wanted.select(["source"]).append_column("samples", pa.array(samples))
    used = _by_source(kept, "sum")
    sources = sorted(set().union(*counts.values()))
    return {
        "kept_hours": sum(used.values()) / SAMPLE_RATE_HZ / 3600,  # of whole numbers, in any order
        "num_shards": num_shards,
        **{name: sum(found.values()) for name, found in counts.items()},
        "sources": {
            source: {
                "kept_hours": used.get(source, 0) / SAMPLE_RATE_HZ / 3600,
                **{name: found.get(source, 0) for name, found in counts.items()},
            }
            for source in sources
        },
        **_by_language(listing.wanted),
    }


def _by_language(wanted: pa.Table) -> dict[str, Any]:
    """How many recordings are in which language, where there are several."""
    counted = pc.value_counts(wanted["language"]).to_pylist()
    found = {one["values"] or "none": one["counts"] for one in counted}
    return {"languages": dict(sorted(found.items()))} if len(found) > 1 else {}


def _by_source(table: pa.Table, what: str = "count") -> dict[str, int]:
    """The number of rows of each source, or the sum of their samples."""
    column = "samples" if what == "sum" else "source"
    found = table.group_by("source").aggregate([(column, what)])
    return dict(
        zip(found["source"].to_pylist(), found[f"{column}_{what}"].to_pylist(), strict=True)
    )


class HeadersTask(NamedTuple):
    """Recordings whose headers are to be read."""

    sources: Sequence[str]
    leaves: Sequence[Leaf]


class HeaderReader:
    """The corpus stage's worker: reads headers, in processes that files may crash."""

    def __init__(self, roots: Mapping[str, Root], num_threads: int) -> None:
        self._roots, self._num_threads = roots, num_threads

    def __call__(self, task: HeadersTask) -> Headers:
        """What the headers say, as far as they do. Raises BackendError."""
        trees = {name: root.tree() for name, root in self._roots.items()}
        where = [
            trees[source].place(leaf)
            for source, leaf in zip(task.sources, task.leaves, strict=True)
        ]
        decoders = Decoders(self._num_threads, decode=headers.as_blocks)
        with closing(decoders), ThreadPoolExecutor(self._num_threads) as threads:
            found = threads.map(lambda place: _header(decoders, place), where)
            return Headers.of(found)


def _header(decoders: Decoders, place: Place) -> Header:
    try:
        (found,) = decoders.blocks(place)
    except UnreadableAudioError:  # it is decoded in its turn, and gets its verdict there
        return headers.by_size(place)
    return Header(*(int(number) for number in found))


class Scan:
    """Reads the headers of a listing, in blocks that are kept."""

    def __init__(self, attempt: Attempt, roots: Mapping[str, Root]) -> None:
        self._attempt, self._roots = attempt, roots
        self._num_threads = attempt.resources.cpus_per_worker

    def headers(self, wanted: pa.Table) -> Headers:
        """What the header of each recording says."""
        blocks = [wanted.slice(start, _BLOCK) for start in range(0, wanted.num_rows, _BLOCK)]
        paths = [f"scan/{_digest(block['id'].to_pylist())}.parquet" for block in blocks]
        there = self._attempt.out.list("scan")
        missing = [n for n, path in enumerate(paths) if path not in there]
        for done, (number, read) in enumerate(self._found(blocks, missing), start=1):
            table = pa.table(list(read), schema=_HEADERS_SCHEMA)
            create_table(self._attempt.out, paths[number], table)
            num_left = len(missing) - done
            self._attempt.progress(len(blocks) - num_left, len(blocks), "blocks of headers")
        with ThreadPoolExecutor(_READERS) as threads:
            tables = threads.map(partial(read_table, self._attempt.out), paths)
            found = pa.concat_tables(tables)
        return Headers(*(found[name].to_numpy() for name in Headers._fields))

    def _found(
        self, blocks: Sequence[pa.Table], missing: Sequence[int]
    ) -> Iterator[tuple[int, Headers]]:
        """The headers of some blocks: by the pool, unless that takes longer to start."""

        def task(number: int) -> HeadersTask:
            rows = blocks[number].to_pylist()
            return HeadersTask([row["source"] for row in rows], [leaf_of(row) for row in rows])

        if len(missing) <= 1:
            read = HeaderReader(self._roots, self._num_threads)
            yield from ((number, read(task(number))) for number in missing)
            return
        with stage_pool(self._attempt, HeaderReader, self._roots, self._num_threads) as pool:
            yield from pool.run(missing, task, tick=self._attempt.check)


def _digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(run_stage("corpus", work))
