"""The corpus stage: which utterances there are, and which shard each belongs to.

In: the recipe's sources below the cluster's roots. Out: ``manifest.parquet`` (a row per utterance),
``shards.parquet``, ``left_out.parquet`` (what the recipe does not want) and ``quarantine.parquet``
(what cannot be read), all in the order of sources and paths, so that the same audio gives the same
bytes. Every kept recording is decoded once: only that gives its exact length and says whether
anything can be heard. Findings are stored block by block on the way, which is where a killed
attempt goes on.
"""

from __future__ import annotations

import hashlib
import io
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from jobs import text_model
from jobs.attempt import Attempt, run_stage
from jobs.audio.decode import UnreadableAudioError, Wave, blocks
from jobs.audio.decoders import Decode, Decoders
from jobs.audio.listing import Recording, list_recordings
from jobs.audio.roots import RootWatch
from jobs.enough_audio import require_enough, require_splits
from orchestrator.errors import AlreadyExistsError, DataError
from orchestrator.ledger.source_files import as_path
from orchestrator.ledger.storage import Storage
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Corpus, Windows

_BLOCK = 1_000
"""Recordings probed between two writes."""

SILENCE_PEAK = 10 ** (-50 / 20)
"""A recording that never exceeds this amplitude (-50 dB of full scale) holds no speech."""

MANIFEST_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("path", pa.string()),
        ("start_sample", pa.int64()),
        ("num_samples", pa.int64()),
        ("language", pa.string()),
        ("speaker", pa.string()),
        ("recording", pa.string()),
    ]
)
_SHARDS_SCHEMA = pa.schema([("shard", pa.int32()), ("row", pa.int64())])
_LEFT_OUT_SCHEMA = pa.schema([(n, pa.string()) for n in ("path", "source", "language", "reason")])
_QUARANTINE_SCHEMA = pa.schema([(n, pa.string()) for n in ("path", "source", "reason")])
_PROBE_SCHEMA = pa.schema(
    [("num_samples", pa.int64()), ("left_out", pa.string()), ("unreadable", pa.string())]
)

Row = dict[str, Any]


class Span(NamedTuple):
    """A stretch of a recording, in samples at 16 kHz."""

    start_sample: int
    num_samples: int


class Probe(NamedTuple):
    """What decoding a recording says about it."""

    num_samples: int = 0
    left_out: str = ""
    """Why it is not used; empty when it is."""
    unreadable: str = ""
    """Why it cannot be decoded; empty when it can."""

    @property
    def is_usable(self) -> bool:
        """Whether it has utterances."""
        return not (self.left_out or self.unreadable)


def work(attempt: Attempt) -> dict[str, Any]:
    """List, probe, cut and share out; the corpus' facts."""
    torch.set_num_threads(1)
    text_model.require_all(attempt)
    corpus = attempt.recipe.corpus
    roots = {s.name: attempt.data_root(s.name) for s in corpus.sources}
    watches = {name: RootWatch(name, root) for name, root in roots.items()}
    wanted, left_out = choose(corpus, roots)
    if not wanted:
        raise DataError(nothing_wanted(corpus, left_out))
    for shares in {r.split for r in attempt.all_recipes} if attempt.scope.splits else ():
        # Before hours of decoding, which leaves none but these.
        require_splits([recording.id for recording in wanted], shares)
    probes = _Prober(attempt, roots, watches).probes(wanted)
    usable = [(r, p) for r, p in zip(wanted, probes, strict=True) if p.is_usable]
    if usable:
        num_samples = {r.id: p.num_samples for r, p in usable}
        require_enough(attempt.all_recipes, num_samples, attempt.scope)
    return write_tables(attempt.out, corpus, wanted, probes, left_out)


def choose(corpus: Corpus, roots: Mapping[str, Path]) -> tuple[list[Recording], list[Row]]:
    """The recordings to probe, and rows for those left out by language or data fraction."""
    wanted: list[Recording] = []
    left_out: list[Row] = []
    for source in corpus.sources:
        for recording in list_recordings(source, roots[source.name]):
            if reason := _unwanted(recording, corpus):
                left_out.append({**recording._asdict(), "reason": reason})
            else:
                wanted.append(recording)
    return wanted, left_out


def write_tables(
    out: Storage,
    corpus: Corpus,
    wanted: Sequence[Recording],
    probes: Sequence[Probe],
    left_out: Sequence[Row],
) -> dict[str, Any]:
    """Write the four tables and return the facts. Raises DataError when no utterance remains."""
    pairs = list(zip(wanted, probes, strict=True))
    rows = [row for r, p in pairs if p.is_usable for row in utterances(r, p, corpus.windows)]
    silent = [{**r._asdict(), "reason": p.left_out} for r, p in pairs if p.left_out]
    dropped = [*left_out, *silent]
    bad = [{**r._asdict(), "reason": p.unreadable} for r, p in pairs if p.unreadable]
    if not rows:
        reasons = Counter(row["reason"] for row in silent) + Counter(unreadable=len(bad))
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        raise DataError(
            f"corpus: none of {len(wanted)} recordings can be used ({counts}); check the data, and "
            "corpus.windows"
        )
    shards = share_out([row["num_samples"] for row in rows], corpus.shard_hours)
    shard_rows = [{"shard": shard, "row": row} for row, shard in enumerate(shards)]
    _create_table(out, "manifest.parquet", rows, MANIFEST_SCHEMA)
    _create_table(out, "shards.parquet", shard_rows, _SHARDS_SCHEMA)
    _create_table(out, "left_out.parquet", dropped, _LEFT_OUT_SCHEMA)
    _create_table(out, "quarantine.parquet", bad, _QUARANTINE_SCHEMA)
    return {
        "kept_hours": sum(row["num_samples"] for row in rows) / SAMPLE_RATE_HZ / 3600,
        "num_recordings": len({row["recording"] for row in rows}),
        "num_utterances": len(rows),
        "num_shards": shards[-1] + 1,
        "num_left_out": len(dropped),
        "num_quarantined": len(bad),
    }


def utterances(recording: Recording, probe: Probe, windows: Windows) -> list[Row]:
    """Manifest rows of one recording."""
    spans = cut(probe.num_samples, windows)
    return [
        {
            **recording._asdict(),
            **span._asdict(),
            "id": recording.id if len(spans) == 1 else f"{recording.id}@{span.start_sample}",
            "recording": recording.id,
        }
        for span in spans
    ]


def cut(num_samples: int, windows: Windows) -> list[Span]:
    """The utterances of a recording in order; none when it is shorter than ``min_s``.

    Whole where it fits, equal windows where it is too long: the length of an utterance changes its
    features.
    """
    if num_samples < windows.min_s * SAMPLE_RATE_HZ:
        return []
    count = ceil(num_samples / (windows.max_s * SAMPLE_RATE_HZ))
    edges = [num_samples * i // count for i in range(count + 1)]
    return [Span(a, b - a) for a, b in pairwise(edges)]


def is_silent(wav_S: Wave) -> bool:
    """Whether nothing can be heard in the wave."""
    return bool(np.abs(wav_S).max(initial=0.0) < SILENCE_PEAK)


def share_out(num_samples: Sequence[int], shard_hours: float) -> list[int]:
    """The shard of each row: runs of neighbours with equal audio, to within an utterance.

    Neighbours stay together so that the windows of one long file are decoded together.
    """
    total = sum(num_samples)
    count = min(len(num_samples), ceil(total / (shard_hours * 3600 * SAMPLE_RATE_HZ)))
    shards, before, last = [], 0, -1
    for row, size in enumerate(num_samples):
        middle = (2 * before + size) * count // (2 * total)
        # No shard may stay empty: go at most one further, and leave a row for each that is to come.
        last = max(min(middle, last + 1), count - (len(num_samples) - row), 0, last)
        shards.append(last)
        before += size
    return shards


def probe(recording: Recording, root: Path, windows: Windows, decode: Decode = blocks) -> Probe:
    """Decode a recording for its length and for whether it can be used."""
    if recording.problem:
        return Probe(unreadable=recording.problem)
    num_samples, is_heard = 0, False
    try:
        for block_S in decode(root / as_path(recording.path)):
            num_samples += len(block_S)
            is_heard = is_heard or not is_silent(block_S)
    except UnreadableAudioError as error:
        return Probe(unreadable=error.reason)
    if not cut(num_samples, windows):
        return Probe(num_samples, left_out=f"shorter than {windows.min_s} s")
    return Probe(num_samples, left_out="" if is_heard else "silent")


def _unwanted(recording: Recording, corpus: Corpus) -> str:
    """Why the recipe does not want the recording; empty when it does."""
    if recording.language not in corpus.languages:
        return "language"
    # Salted, because the split into train, valid and test hashes the same ids.
    digest = hashlib.sha256(f"data_fraction/{recording.id}".encode()).digest()
    is_in = int.from_bytes(digest[:6], "big") / 2**48 < corpus.data_fraction
    return "" if is_in else "data_fraction"


def nothing_wanted(corpus: Corpus, left_out: Sequence[Row]) -> str:
    """Why there is nothing to probe."""
    if in_language := sum(row["reason"] == "data_fraction" for row in left_out):
        return (
            f"corpus.data_fraction: {corpus.data_fraction:g} of {in_language} recordings is none "
            "of them; raise it or add recordings"
        )
    languages = sorted({row["language"] or "none" for row in left_out})
    found = ", ".join(languages) or "no audio files at all"
    return (
        f"corpus: no recording in {', '.join(corpus.languages)} below the roots (found: {found}); "
        "check corpus.languages and the cluster's data"
    )


class _Prober:
    """Decodes recordings for what that says of them, in blocks that are kept."""

    def __init__(
        self, attempt: Attempt, roots: Mapping[str, Path], watches: Mapping[str, RootWatch]
    ) -> None:
        self._attempt, self._roots, self._watches = attempt, roots, watches
        self._windows = attempt.recipe.corpus.windows
        self._threads = attempt.resources.cpus_per_worker * attempt.resources.max_workers

    def probes(self, wanted: Sequence[Recording]) -> list[Probe]:
        """A probe per recording, taken from finished blocks where there are any."""
        found: list[Probe] = []
        with closing(Decoders(self._threads)) as decoders:
            for start in range(0, len(wanted), _BLOCK):
                found += self._of_block(wanted[start : start + _BLOCK], decoders)
                self._attempt.check()
                self._attempt.progress(len(found), len(wanted), "recordings")
        return found

    def _of_block(self, block: Sequence[Recording], decoders: Decoders) -> list[Probe]:
        out = self._attempt.out
        digest = hashlib.sha256("\n".join(r.id for r in block).encode()).hexdigest()[:16]
        path = f"probes/{digest}.parquet"
        if out.exists(path):
            table = pq.read_table(io.BytesIO(out.read_bytes(path)))
            return [Probe(**row) for row in table.to_pylist()]
        with ThreadPoolExecutor(self._threads) as pool:
            found = list(pool.map(lambda r: self._probe(r, decoders), block))
        for watch in self._watches.values():
            watch.require()  # or what is missing may be so because all of it is
        _create_table(out, path, [p._asdict() for p in found], _PROBE_SCHEMA)
        return found

    def _probe(self, recording: Recording, decoders: Decoders) -> Probe:
        root = self._roots[recording.source]
        found = probe(recording, root, self._windows, decoders.blocks)
        if not found.unreadable:
            self._watches[recording.source].has_read(root / as_path(recording.path))
        return found


def _create_table(out: Storage, path: str, rows: Sequence[Row], schema: pa.Schema) -> None:
    """Create a table; one already there was written from the same audio by an earlier attempt."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema), buffer, compression="zstd")
    try:
        out.create(path, buffer.getvalue())
    except AlreadyExistsError:
        return


if __name__ == "__main__":
    sys.exit(run_stage("corpus", work))
