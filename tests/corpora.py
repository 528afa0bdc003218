"""Small corpora and their artifacts, made in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile

from jobs.audio import places
from jobs.audio.corpus_tables import CorpusTables, Expected, Row, leaf_of, share_out
from jobs.audio.listing import Listing, list_corpus
from jobs.audio.roots import Root
from jobs.audio.trees import Leaf
from jobs.corpus import HeaderReader, HeadersTask, told_apart, write_tables
from jobs.speech import sample
from jobs.speech.utterances import Utterance, WaveReader
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Corpus, Windows


def make_corpus(out: Storage, corpus: Corpus, roots: Mapping[str, Root]) -> CorpusTables:
    """The corpus' artifact, without a run around it."""
    listing = list_corpus(corpus, roots)
    read = HeaderReader(roots, 1)(task_of(listing.wanted))
    listing, lengths = told_apart(corpus, listing, read)
    expected = Expected.of(listing.wanted["spans_s"], lengths, corpus.windows)
    places.create(out, places.folder_of(roots), listing.wanted)
    write_tables(out, listing, lengths, share_out(*expected, corpus.shard_hours))
    return CorpusTables(out, places.folder_of(roots))


def lengths_of(listing: Listing, roots: Mapping[str, Root]) -> np.ndarray:
    """What the headers of a listing say."""
    return HeaderReader(roots, 1)(task_of(listing.wanted)).num_samples


def task_of(wanted: pa.Table) -> HeadersTask:
    """The headers of rows."""
    rows = wanted.to_pylist()
    return HeadersTask([row["source"] for row in rows], [leaf_of(row) for row in rows])


def sampled(
    tables: CorpusTables,
    roots: Mapping[str, Root],
    *,
    hours: float = 1e9,
    seed: int = 0,
    windows: Windows | None = None,
) -> list[sample.Measured]:
    """A sample of a corpus, measured in this process."""
    reader = WaveReader(roots)

    def measured(tasks: Sequence[sample.MeasureTask]) -> list[list[sample.Measured]]:
        return [task(reader) for task in tasks]

    return sorted(sample.draw(tables, hours, seed, windows or Windows(), measured))


def utterances_of(tables: CorpusTables, found: Sequence[sample.Measured]) -> list[Utterance]:
    """Measured windows with their recordings."""
    rows = {row.number: row for row in tables.at([m.row for m in found])}
    return [Utterance(m.id, rows[m.row], m.start_sample, m.num_samples) for m in found]


def row_of(name: str, *, number: int = 0, source: str = "s", header_samples: int = 0) -> Row:
    """A recording that is a file of its name."""
    leaf = Leaf(name, 0)
    return Row(number, name, source, None, (), "en", "", "", header_samples, leaf)


def write_wave(path: Path, num_samples: int, seed: int = 0) -> np.ndarray:
    """Write noise of a voice's level; the wave."""
    rng = np.random.default_rng(seed)
    wave = rng.normal(0, 0.1, num_samples).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, 16_000, subtype="FLOAT" if path.suffix == ".wav" else None)
    return wave
