"""The corpus stage on a small tree of real files, without a run around it."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from jobs.audio.corpus_tables import Expected
from jobs.audio.listing import list_corpus
from jobs.audio.roots import Root, RootWatch
from jobs.corpus import (
    empty_folders,
    facts,
    nothing_wanted,
    require_roots,
    require_usable,
    say_what_is_not_used,
)
from orchestrator.errors import BackendError, DataError
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Corpus, Source
from tests.corpora import lengths_of, make_corpus, write_wave

RATE_HZ = 16_000


def corpus_of(**over: Any) -> Corpus:
    given = {"sources": [Source(name="a"), Source(name="b")], "shard_hours": 2 / 3600, **over}
    return Corpus.model_validate({"windows": {"min_s": 0.4, "max_s": 1.5}, **given})


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Root]:
    for path, seconds in {
        "a/en/x.wav": 1.0,
        "a/en/long.wav": 4.0,
        "a/es/y.wav": 1.0,
        "b/en/tiny.wav": 0.1,
    }.items():
        write_wave(tmp_path / path, int(seconds * RATE_HZ))
    soundfile.write(tmp_path / "b/en/still.wav", np.zeros(RATE_HZ), RATE_HZ)
    (tmp_path / "b/en/broken.wav").write_bytes(b"no")
    (tmp_path / "b/en/dead.wav").symlink_to("nowhere.wav")
    return {"a": Root(tmp_path / "a"), "b": Root(tmp_path / "b")}


def rows(out: Storage, path: str) -> list[dict[str, Any]]:
    return pq.read_table(io.BytesIO(out.read_bytes(path))).to_pylist()


def test_every_file_is_in_exactly_one_table(tmp_path: Path, roots: dict[str, Root]) -> None:
    out = Storage(str(tmp_path / "out"))
    make_corpus(out, corpus_of(), roots)
    assert [(r["id"], r["header_samples"]) for r in rows(out, "recordings/000000.parquet")] == [
        ("a/en/long", 64_000),
        ("a/en/x", 16_000),
        ("b/en/broken", 8),
        ("b/en/still", 16_000),
        ("b/en/tiny", 1_600),
    ]
    assert [(r["id"], r["reason"]) for r in rows(out, "left_out.parquet")] == [
        ("a/es/y", "language")
    ]
    (bad,) = rows(out, "quarantine.parquet")
    assert bad["id"] == "b/en/dead"
    assert "link" in bad["reason"]


def test_the_same_audio_gives_the_same_bytes(tmp_path: Path, roots: dict[str, Root]) -> None:
    outs = [Storage(str(tmp_path / name)) for name in ("one", "two")]
    for out in outs:
        make_corpus(out, corpus_of(), roots)
    assert len(outs[0].list()) == 5
    assert {p: outs[0].digest(p) for p in outs[0].list()} == {
        p: outs[1].digest(p) for p in outs[1].list()
    }


def test_facts_are_those_of_every_source(roots: dict[str, Root]) -> None:
    corpus = corpus_of()
    listing = list_corpus(corpus, roots)
    lengths = lengths_of(listing, roots)
    expected = Expected.of(listing.wanted["spans_s"], lengths, corpus.windows)
    assert expected.num_windows.tolist() == [3, 1, 1, 1, 1]
    assert facts(listing, expected.samples, num_shards=3) == {
        "kept_hours": pytest.approx((96_000 + 1_608) / RATE_HZ / 3600),
        "num_shards": 3,
        "num_recordings": 5,
        "num_left_out": 1,
        "num_quarantined": 1,
        "sources": {
            "a": {
                "kept_hours": pytest.approx(5 / 3600),
                "num_recordings": 2,
                "num_left_out": 1,
                "num_quarantined": 0,
            },
            "b": {
                "kept_hours": pytest.approx(17_608 / RATE_HZ / 3600),
                "num_recordings": 3,
                "num_left_out": 0,
                "num_quarantined": 1,
            },
        },
    }


def test_a_log_says_what_is_not_used_and_why(
    roots: dict[str, Root], caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(5):
        (roots["b"].path / f"en/dead{number}.wav").symlink_to("nowhere.wav")
    caplog.set_level(logging.INFO)
    say_what_is_not_used(list_corpus(corpus_of(), roots))
    assert caplog.messages == [
        "left out, language: 1",
        "quarantined: b/en/dead: a dead link",
        *(f"quarantined: b/en/dead{number}: a dead link" for number in range(3)),
        "quarantined besides: 2",
    ]


def test_of_several_languages_each_is_counted(roots: dict[str, Root]) -> None:
    corpus = corpus_of(languages=["en", "es"])
    listing = list_corpus(corpus, roots)
    samples = lengths_of(listing, roots)
    assert facts(listing, samples, num_shards=1)["languages"] == {"en": 5, "es": 1}


def test_a_fraction_is_part_of_every_larger_one(roots: dict[str, Root]) -> None:
    for i in range(40):
        (roots["a"].path / f"en/{i}.wav").touch()
    quarter, half = (
        set(list_corpus(corpus_of(data_fraction=f), roots).wanted["id"].to_pylist())
        for f in (0.25, 0.5)
    )
    assert quarter < half
    assert 3 <= len(quarter) <= 20
    assert 12 <= len(half) <= 33


def test_nothing_in_the_language_says_what_there_is(roots: dict[str, Root]) -> None:
    corpus = corpus_of(languages=["fr"])
    said = nothing_wanted(corpus, list_corpus(corpus, roots))
    assert "no recording in fr" in said
    assert "(found: en, es)" in said


def test_a_source_whose_adapter_finds_no_language_says_so(roots: dict[str, Root]) -> None:
    corpus = corpus_of(sources=[Source(name="a", adapter="mls")])
    said = nothing_wanted(corpus, list_corpus(corpus, {"a": roots["a"]}))
    assert "none has a language that the adapter finds; check the source's adapter" in said


def test_a_fraction_of_few_recordings_may_be_none_of_them(roots: dict[str, Root]) -> None:
    corpus = corpus_of(data_fraction=1e-9)
    with pytest.raises(DataError, match="1e-09 of 6 recordings is none of them"):
        require_usable(corpus, list_corpus(corpus, roots))


def test_folders_that_hold_nothing_are_named(
    tmp_path: Path, roots: dict[str, Root], caplog: pytest.LogCaptureFixture
) -> None:
    for name in "vwxyz":
        (tmp_path / "b/en" / name).mkdir()
    found = set[str]()
    list_corpus(corpus_of(), roots, found.add)
    assert empty_folders(found) == {
        "num_empty_folders": 5,
        "empty_folders": ["b/en/v", "b/en/w", "b/en/x", "b/en/y"],
    }
    assert "5 folders hold nothing (b/en/v, b/en/w, b/en/x, b/en/y, and so on)" in caplog.text
    assert not empty_folders(set())


def test_a_dead_link_that_may_stand_for_a_folder_ends_the_stage(roots: dict[str, Root]) -> None:
    (roots["b"].path / "fr").symlink_to("/mnt/gone")
    with pytest.raises(BackendError, match=r"data.b: .*/b/fr: a dead link, .*; mount what it"):
        list_corpus(corpus_of(), roots)


def test_too_much_that_cannot_be_opened_ends_the_stage(roots: dict[str, Root]) -> None:
    for i in range(5):
        (roots["b"].path / f"en/dead{i}.wav").symlink_to("nowhere.wav")
    with pytest.raises(DataError, match=r"percent: 6 of 12 recordings cannot be read.*b/en/dead: "):
        require_usable(corpus_of(), list_corpus(corpus_of(), roots))
    require_usable(corpus_of(max_quarantine_percent=50), list_corpus(corpus_of(), roots))


def test_a_source_that_gives_nothing_beside_one_that_does_is_named(tmp_path: Path) -> None:
    write_wave(tmp_path / "a/en/x.wav", RATE_HZ)
    write_wave(tmp_path / "b/es/y.wav", RATE_HZ)
    (tmp_path / "c/en").mkdir(parents=True)
    (tmp_path / "c/en/notes.txt").write_text("no audio")
    (tmp_path / "d/en").mkdir(parents=True)
    (tmp_path / "d/en/dead.wav").symlink_to("nowhere.wav")
    for name, said in {
        "b": r"no recording in en \(found: es\); check corpus.languages",
        "c": r"no recording in en \(found: no audio files at all\)",
        "d": r"1 of 1 recordings cannot be read, the first is d/en/dead: .*; repair",
    }.items():
        corpus = corpus_of(sources=[Source(name="a"), Source(name=name)])
        listing = list_corpus(corpus, {n: Root(tmp_path / n) for n in ("a", name)})
        with pytest.raises(DataError, match=f"^corpus.sources: {name}: {said}"):
            require_usable(corpus, listing)


def test_a_source_of_which_a_fraction_takes_nothing_is_no_fault(tmp_path: Path) -> None:
    for name in ("a/en/0.wav", "a/en/1.wav", "a/en/2.wav", "b/en/0.wav"):
        write_wave(tmp_path / name, RATE_HZ)
    corpus = corpus_of(data_fraction=0.3)
    listing = list_corpus(corpus, {name: Root(tmp_path / name) for name in ("a", "b")})
    assert set(listing.wanted["source"].to_pylist()) == {"a"}
    require_usable(corpus, listing)


def test_a_file_that_is_called_by_another_has_an_id_of_its_own(roots: dict[str, Root]) -> None:
    for name in ("same.wav", "same.flac", "same.wav.flac", "x.wav.mp3", "y.mp3"):
        (roots["a"].path / "en" / name).touch()
    found = list_corpus(corpus_of(), roots).wanted["id"].to_pylist()
    assert [name for name in found if name.startswith(("a/en/same", "a/en/x", "a/en/y"))] == [
        *("a/en/same.flac", "a/en/same.wav", "a/en/same.wav.flac"),
        *("a/en/x", "a/en/x.wav.mp3", "a/en/y"),
    ]


def test_what_the_corpus_itself_warns_of_is_said_where_nothing_is_left(tmp_path: Path) -> None:
    for part, spans in (("duplicate", "[[0, 1]]"), ("small", "[]")):
        stem = tmp_path / "root" / part / "1/book/a_64kb"
        write_wave(stem.with_suffix(".flac"), 9_000)
        about = f'{{"speaker": "1", "voice_activity": {spans}}}'
        stem.with_suffix(".json").write_text(about)
    corpus = Corpus(sources=(Source(name="a", adapter="libri_light"),))
    said = r"every recording is left out \(duplicate: 1, no speech: 1\)"
    with pytest.raises(DataError, match=said):
        require_usable(corpus, list_corpus(corpus, {"a": Root(tmp_path / "root")}))


def test_what_cannot_be_opened_is_no_verdict_where_nothing_else_can(
    roots: dict[str, Root],
) -> None:
    watches = {name: RootWatch(name, root.path) for name, root in roots.items()}
    wanted = list_corpus(corpus_of(), roots).wanted
    require_roots(watches, roots, wanted)
    (roots["b"].path / "en/broken.wav").unlink()
    with pytest.raises(BackendError, match=r"data\.b: .*broken\.wav: No such file"):
        require_roots(watches, roots, wanted)
