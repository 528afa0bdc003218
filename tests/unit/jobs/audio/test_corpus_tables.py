"""The tables of a corpus, written and read in pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from jobs.audio import places
from jobs.audio.corpus_tables import PIECE_ROWS, CorpusTables, Part, pieces_of, share_out
from jobs.audio.listing import LISTED_SCHEMA, Listing
from jobs.audio.roots import Root
from jobs.corpus import write_tables
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Corpus, Source, Windows
from tests.corpora import make_corpus, write_wave

HOUR = 3600 * 16_000


def tables_of(folder: Path, lengths: list[int], shard_hours: float) -> CorpusTables:
    for number, length in enumerate(lengths):
        write_wave(folder / f"root/en/{number:02d}.wav", length)
    corpus = Corpus(sources=(Source(name="s"),), windows=Windows(max_s=1), shard_hours=shard_hours)
    return make_corpus(Storage(str(folder / "out")), corpus, {"s": Root(folder / "root")})


def held(parts: list[Part]) -> list[tuple[int, int, int | None]]:
    return [(part.row.number, part.first, part.end) for part in parts]


def test_shards_hold_equal_audio_and_divide_long_recordings(tmp_path: Path) -> None:
    tables = tables_of(tmp_path, [16_000, 8_000, 5 * 16_000, 8_000, 16_000], 2.5 / 3600)
    assert tables.num_rows == 5
    assert [held(tables.shard(n).parts()) for n in range(tables.num_shards)] == [
        [(0, 0, None), (1, 0, None)],
        [(2, 0, 2)],
        [(2, 2, 4)],
        [(2, 4, None), (3, 0, None), (4, 0, None)],
    ]


def test_every_window_is_in_one_shard(tmp_path: Path) -> None:
    del tmp_path
    rng = np.random.default_rng(0)
    for _ in range(200):
        samples = rng.integers(0, 10, size=rng.integers(1, 9)) ** rng.integers(1, 6)
        num_windows = np.maximum(samples // 50, 1)
        samples[0] += 1
        shards = share_out(samples, num_windows, float(rng.integers(1, 300)) / HOUR)
        ends = np.cumsum(num_windows)
        rows, windows = (shards[name].to_numpy() for name in ("row", "window"))
        before = np.where(rows > 0, ends[np.maximum(rows - 1, 0)], 0) + windows
        assert before[0] == 0
        assert before[-1] == ends[-1]
        assert (np.diff(before) > 0).all(), "none is empty"
        assert (windows[:-1] < num_windows[rows[:-1]]).all()


def test_a_table_of_several_pieces_is_read_piece_by_piece(tmp_path: Path) -> None:
    num_rows = PIECE_ROWS + 3
    columns = {
        "id": [f"s/{n:06d}" for n in range(num_rows)],
        "spans_s": [[]] * num_rows,
        "offset": range(num_rows),
        **{name: [""] * num_rows for name in ("source", "language", "speaker", "session", "path")},
    }
    wanted = pa.table({n: columns.get(n, [None] * num_rows) for n in LISTED_SCHEMA.names})
    listing = Listing(wanted.cast(LISTED_SCHEMA), pa.table({}), pa.table({}))
    lengths = np.full(num_rows, 16_000)
    out, roots = Storage(str(tmp_path)), {"s": Root(tmp_path)}
    places.create(out, places.folder_of(roots), listing.wanted)
    write_tables(out, listing, lengths, share_out(lengths, np.ones(num_rows, np.int64), 10))
    assert len(out.list("recordings")) == 2
    tables = CorpusTables(out, places.folder_of(roots))
    over = range(PIECE_ROWS - 2, PIECE_ROWS + 2)
    assert [row.id for row in tables.rows(over.start, over.stop)] == [f"s/{n:06d}" for n in over]
    assert [row.leaf.offset for row in tables.rows(over.start, over.stop)] == list(over)
    assert [row.number for row in tables.at([1, PIECE_ROWS, PIECE_ROWS])] == [1, PIECE_ROWS]
    shards = [tables.shard(shard).parts() for shard in range(tables.num_shards)]
    assert [part.row.number for parts in shards for part in parts] == list(range(num_rows))
    assert tables.samples_by_recording(Windows()).num_rows == num_rows


def test_there_is_a_piece_even_of_nothing() -> None:
    assert [piece.num_rows for piece in pieces_of(pa.table({"a": []}))] == [0]


def test_millions_of_hours_are_shared_out_exactly() -> None:
    samples = np.full(1000, 5_000 * HOUR)
    shards = share_out(samples, samples // (30 * 16_000), 0.5)
    assert shards.num_rows == 10_000_000 + 1
    assert np.diff(shards["row"].to_numpy()).max() == 1
