"""A file with several channels becomes a recording of each, where the recipe says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from jobs.audio import places
from jobs.audio.corpus_tables import CorpusTables
from jobs.audio.each_channel import file_ids, split
from jobs.audio.headers import Headers
from jobs.audio.listing import LISTED_SCHEMA
from jobs.audio.roots import Root
from jobs.lm.splits import groups_of
from jobs.speech.utterances import WaveReader
from orchestrator.errors import DataError
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Corpus, Source
from tests.corpora import make_corpus, write_wave

CORPUS = Corpus(
    sources=(Source(name="calls", channels="each"), Source(name="books")), snapshot="now"
)


def rows_of(*ids: str, **columns: list[Any]) -> pa.Table:
    about = [{"id": name, "source": name.split("/")[0], "session": ""} for name in ids]
    rows = pa.Table.from_pylist(about, LISTED_SCHEMA)
    for name, values in columns.items():
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, LISTED_SCHEMA.field(name), pa.array(values))
    return rows


def headers_of(**channels: int) -> Headers:
    counts = np.array(list(channels.values()))
    return Headers(100 * np.arange(1, len(counts) + 1), counts)


def write_stereo(path: Path, num_channels: int = 2) -> np.ndarray:
    """Write a voice in each channel; ``wav_SC``."""
    rng = np.random.default_rng(num_channels)
    wav_SC = rng.normal(0, 0.1, (40_000, num_channels)).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wav_SC, 16_000, subtype="FLOAT")
    return wav_SC


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Root]:
    write_stereo(tmp_path / "calls/en/a.wav")
    write_wave(tmp_path / "calls/en/b.wav", 40_000)
    write_stereo(tmp_path / "calls/en/c.wav", 3)
    write_stereo(tmp_path / "books/en/a.wav")
    return {name: Root(tmp_path / name) for name in ("calls", "books")}


def test_every_channel_is_heard_alone(tmp_path: Path, roots: dict[str, Root]) -> None:
    tables = make_corpus(Storage(str(tmp_path / "out")), CORPUS, roots)
    rows = list(tables.rows(0, tables.num_rows))
    assert [row.id for row in rows] == [
        *("calls/en/a#0", "calls/en/a#1", "calls/en/b"),
        *("calls/en/c#0", "calls/en/c#1", "calls/en/c#2", "books/en/a"),
    ]
    reader, windows = WaveReader(roots), CORPUS.windows
    for row, part in zip(rows, tables.shard(0).parts(), strict=True):
        wav_SC, _ = soundfile.read(roots[row.source].path / row.leaf.path, always_2d=True)
        (window,) = reader.windows(part, windows)
        expected = wav_SC.mean(axis=1) if row.channel is None else wav_SC[:, row.channel]
        np.testing.assert_allclose(window.wav_S, expected, atol=1e-6)


def test_who_talks_to_each_other_is_in_one_split() -> None:
    rows, _ = split(rows_of("s/a", "s/b", session=["", "show"]), headers_of(a=2, b=2), ["s"])
    assert groups_of(rows, "session", named="id").to_pylist() == ["s/s/a", "s/s/a", *["s/show"] * 2]


def test_samples_go_with_their_rows_and_ids_stay_in_order() -> None:
    rows, samples = split(rows_of("s/a", "s/a b", "r/a"), headers_of(a=2, ab=2, r=2), ["s"])
    assert rows["id"].to_pylist() == ["s/a b#0", "s/a b#1", "s/a#0", "s/a#1", "r/a"]
    assert samples.tolist() == [200, 200, 100, 100, 300]
    assert file_ids(rows["id"]).to_pylist() == ["s/a b", "s/a b", "s/a", "s/a", "r/a"]


def test_what_a_corpus_takes_one_channel_of_stays() -> None:
    rows, samples = split(rows_of("s/a", "s/b", channel=[1, None]), headers_of(a=2, b=1), ["s"])
    assert (rows["id"].to_pylist(), rows["channel"].to_pylist()) == (["s/a", "s/b"], [1, None])
    assert samples.tolist() == [100, 200]


def test_a_file_with_the_name_of_a_channel_is_told() -> None:
    with pytest.raises(DataError, match="s/a#1 is a channel of one file and the name of another"):
        split(rows_of("s/a", "s/a#1"), headers_of(a=2, b=1), ["s"])


@pytest.mark.parametrize("change", ["none", "less", "more"])
def test_another_cluster_finds_the_same_channels(
    tmp_path: Path, roots: dict[str, Root], change: str
) -> None:
    out = Storage(str(tmp_path / "out"))
    made = make_corpus(out, CORPUS, roots)
    shutil.copytree(tmp_path / "calls", tmp_path / "there")
    if change == "less":
        (tmp_path / "there/en/c.wav").unlink()
    if change == "more":
        write_stereo(tmp_path / "there/en/d.wav")
    moved = {**roots, "calls": Root(tmp_path / "there")}
    if change != "none":
        with pytest.raises(DataError, match=r"calls/en/[cd](#0)? is not both here"):
            places.ensured(out, CORPUS, moved)
        return
    found = CorpusTables(out, places.ensured(out, CORPUS, moved))
    assert list(found.rows(0, 7)) == list(made.rows(0, 7))


def test_a_manifest_may_name_the_channel(tmp_path: Path) -> None:
    wav_SC = write_stereo(tmp_path / "calls/a.wav")
    rows = [{"path": "a.wav", "channel": channel, "lang": "en"} for channel in (0, 1)]
    (tmp_path / "calls/manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = Corpus(sources=(Source(name="calls", adapter="manifest"),), snapshot="now")
    roots = {"calls": Root(tmp_path / "calls")}
    tables = make_corpus(Storage(str(tmp_path / "out")), corpus, roots)
    assert [row.id for row in tables.rows(0, 2)] == ["calls/a#0", "calls/a#1"]
    for channel, part in enumerate(tables.shard(0).parts()):
        (window,) = WaveReader(roots).windows(part, corpus.windows)
        np.testing.assert_allclose(window.wav_S, wav_SC[:, channel], atol=1e-6)
