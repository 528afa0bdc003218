"""The corpus artifact as its readers see it: which utterances a shard has, and their waves.

In: ``manifest.parquet`` and ``shards.parquet`` of a corpus artifact, and the roots of its sources
on this node. Out: utterances in shard order; ``wav_S`` per utterance, S samples at 16 kHz.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.attempt import Attempt
from jobs.audio.decode import BLOCK_S, UnreadableAudioError, Wave
from jobs.audio.decoders import Decoders
from jobs.enough_audio import require_enough
from jobs.speech.hubert import plan_batches
from orchestrator.ledger.source_files import as_path
from orchestrator.ledger.storage import Storage
from orchestrator.quantities import SAMPLE_RATE_HZ

PAGE_SAMPLES = 240 * SAMPLE_RATE_HZ
"""Audio decoded ahead and planned into batches: a constant, since batches decide rounding."""


@dataclass(frozen=True)
class Utterance:
    """One row of the manifest, as far as features need it."""

    id: str
    source: str
    path: str
    """Of the recording's file, relative to its source's root."""
    start_sample: int
    num_samples: int
    recording: str


@dataclass(frozen=True)
class Root:
    """Where a source lies on the nodes, and how its recordings are filtered."""

    path: Path
    lowpass_hz: float | None = None


def source_roots(attempt: Attempt) -> dict[str, Root]:
    """Where each source of the attempt's corpus lies here, and its band limit."""
    return {
        source.name: Root(attempt.data_root(source.name), source.lowpass_hz)
        for source in attempt.recipe.corpus.sources
    }


def read_corpus(attempt: Attempt) -> CorpusRows:
    """The rows of the corpus that a stage reads.

    Raises DataError when they are too few for a variant that needs the stage: an earlier run may
    have made the corpus for another split.
    """
    rows = CorpusRows.read(attempt.upstream["corpus"].storage)
    require_enough(attempt.all_recipes, rows.samples_by_recording(), attempt.scope)
    return rows


class CorpusRows:
    """The rows of a corpus artifact: columns in memory, objects only for the rows asked for."""

    def __init__(self, manifest: pa.Table, shards: pa.Table) -> None:
        self._manifest = manifest
        # Sorted by shard, rows of a shard in their order: a shard is a slice.
        order = pc.sort_indices(shards, sort_keys=[("shard", "ascending"), ("row", "ascending")])
        self._shard_of: npt.NDArray[np.int64] = shards["shard"].take(order).to_numpy()
        self._row_of: npt.NDArray[np.int64] = shards["row"].take(order).to_numpy()

    @classmethod
    def read(cls, corpus: Storage) -> CorpusRows:
        """The rows of the artifact in ``corpus``."""
        columns = [f.name for f in fields(Utterance)]
        manifest = pq.read_table(io.BytesIO(corpus.read_bytes("manifest.parquet")), columns=columns)
        shards = pq.read_table(io.BytesIO(corpus.read_bytes("shards.parquet")))
        return cls(manifest, shards)

    @property
    def shards(self) -> list[int]:
        """Numbers of all shards, ascending."""
        return [int(shard) for shard in np.unique(self._shard_of)]

    def samples_by_recording(self) -> dict[str, int]:
        """How many samples at 16 kHz are used of each recording."""
        sums = self._manifest.group_by("recording").aggregate([("num_samples", "sum")])
        names, counts = sums["recording"].to_pylist(), sums["num_samples_sum"].to_pylist()
        return dict(zip(names, counts, strict=True))

    def of_shard(self, shard: int) -> list[Utterance]:
        """The utterances of one shard, in order."""
        start, end = np.searchsorted(self._shard_of, (shard, shard + 1))
        return self.at(self._row_of[start:end].tolist())

    def sample(self, hours: float, seed: int) -> list[Utterance]:
        """A random sample of at least so many hours, or all utterances, in manifest order.

        The order of choice is that of the ids' hashes: another corpus with the same utterance
        treats it alike.
        """
        ids: list[str] = self._manifest["id"].to_pylist()
        num_samples: list[int] = self._manifest["num_samples"].to_pylist()
        wanted = hours * 3600 * SAMPLE_RATE_HZ
        chosen: list[int] = []
        ranks = [sha256(f"{seed}:{name}".encode()).digest() for name in ids]
        for row in sorted(range(len(ids)), key=ranks.__getitem__):
            if wanted <= 0:
                break
            chosen.append(row)
            wanted -= num_samples[row]
        return self.at(sorted(chosen))

    def at(self, rows: Sequence[int]) -> list[Utterance]:
        """The utterances at these rows of the manifest."""
        return [Utterance(**row) for row in self._manifest.take(rows).to_pylist()]


def pages(
    utterances: Sequence[Utterance], max_samples: int = PAGE_SAMPLES
) -> Iterator[list[Utterance]]:
    """Consecutive runs of utterances, at most ``max_samples`` together; a longer one is alone."""
    page: list[Utterance] = []
    filled = 0
    for utterance in utterances:
        if page and filled + utterance.num_samples > max_samples:
            yield page
            page, filled = [], 0
        page.append(utterance)
        filled += utterance.num_samples
    if page:
        yield page


class WaveReader:
    """Reads utterances; neighbours in a recording are taken from one pass over it.

    Memory is bounded by an utterance and a block, however long the recording is.
    """

    def __init__(self, roots: Mapping[str, Root]) -> None:
        self._roots, self._decoders = roots, Decoders(1)
        self._of: tuple[str, str] | None = None
        self._blocks: Iterator[Wave] = iter(())
        self._held: Wave = np.zeros(0, np.float32)
        self._start = 0
        """Which sample of the recording, at 16 kHz, is the first held."""

    def read(self, utterance: Utterance) -> Wave:
        """``wav_S`` of an utterance.

        Raises UnreadableAudioError when its file is broken or shorter than the corpus stage found
        it, BackendError when it cannot be read.
        """
        start, end = utterance.start_sample, utterance.start_sample + utterance.num_samples
        self._go_to(utterance, start)
        while self._start + len(self._held) < end:
            block = next(self._blocks, None)
            if block is None:
                path = self._path(utterance)
                raise UnreadableAudioError(
                    path, f"ends before sample {end}, which the corpus lists"
                )
            self._drop_before(start)
            self._held = np.concatenate([self._held, block])
        self._drop_before(start)
        return self._held[: utterance.num_samples].copy()

    def _go_to(self, utterance: Utterance, start: int) -> None:
        """Begin where the utterance does, unless this pass over its recording is to come there."""
        which, first = (utterance.source, utterance.path), start // (BLOCK_S * SAMPLE_RATE_HZ)
        next_block = (self._start + len(self._held)) // (BLOCK_S * SAMPLE_RATE_HZ)
        if which == self._of and self._start <= start and first <= next_block:
            return
        root = self._roots[utterance.source]
        self._of, self._held = which, np.zeros(0, np.float32)
        self._start = first * BLOCK_S * SAMPLE_RATE_HZ
        self._blocks = self._decoders.blocks(
            self._path(utterance), lowpass_hz=root.lowpass_hz, first=first
        )

    def _drop_before(self, start: int) -> None:
        passed = min(max(start - self._start, 0), len(self._held))
        self._held, self._start = self._held[passed:], self._start + passed

    def _path(self, utterance: Utterance) -> Path:
        return self._roots[utterance.source].path / as_path(utterance.path)


def batches(
    utterances: Sequence[Utterance], reader: WaveReader
) -> Iterator[tuple[list[int], list[Wave]]]:
    """Batches for the encoder: positions in ``utterances`` and their waves.

    A pure function of the utterances. The next page is decoded in a thread while the caller
    computes.
    """
    first = 0
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as thread:
        queue = iter([*pages(utterances), []])
        decoding = thread.submit(_decoded, next(queue), reader)
        for upcoming in queue:
            waves = decoding.result()
            decoding = thread.submit(_decoded, upcoming, reader)
            for batch in plan_batches([len(w) for w in waves]):
                yield [first + i for i in batch], [waves[i] for i in batch]
            first += len(waves)


def _decoded(page: Sequence[Utterance], reader: WaveReader) -> list[Wave]:
    return [reader.read(utterance) for utterance in page]
