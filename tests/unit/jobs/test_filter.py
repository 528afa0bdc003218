"""The filter stage on a small tree of real files, without a run around it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.audio import places
from jobs.audio.corpus_tables import CorpusTables, read_table
from jobs.audio.decode import Wave
from jobs.audio.hearing import Heard
from jobs.audio.language_id import Identified
from jobs.audio.roots import Root
from jobs.audio.voice_activity import Stretch
from jobs.filter import (
    DECISIONS_SCHEMA,
    FilterTask,
    FilterWorker,
    decisions_path,
    judge,
    left_out,
    require_model,
    require_usable,
    runs,
    same_as,
    to_be_decoded,
)
from orchestrator.errors import CorruptError, DataError, RequestError
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Corpus, Filter, LanguageId
from tests.corpora import make_corpus, write_wave
from tests.unit.jobs.audio.test_language_id import tiny_whisper

MODEL = {"model": "w", "sha256": "0" * 64}


def corpus_of(**filter_: Any) -> Corpus:
    given = {"sources": [{"name": "s"}], "filter": filter_, "max_quarantine_percent": 100}
    return Corpus.model_validate(given)


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Root]:
    for name, seed in {"a": 1, "b": 2, "c": 1, "d": 1}.items():
        write_wave(tmp_path / f"root/en/{name}.wav", 16_000, seed)
    (tmp_path / "root/en/broken.wav").write_bytes(b"no")
    write_wave(tmp_path / "root/fr/e.wav", 16_000, 1)
    return {"s": Root(tmp_path / "root")}


def heard_of(
    tmp_path: Path, corpus: Corpus, roots: dict[str, Root], model: str = ""
) -> tuple[CorpusTables, Storage, Storage]:
    """The corpus, its artifact and that of the filter, with all decisions taken in this process."""
    listed, out = Storage(str(tmp_path / "corpus")), Storage(str(tmp_path / "filter"))
    tables = make_corpus(listed, corpus, roots)
    FilterWorker(out.url, roots, corpus, model)(
        FilterTask(0, tuple(tables.rows(0, tables.num_rows)))
    )
    return tables, listed, out


@pytest.mark.parametrize("mode", ["report", "drop"])
def test_each_recording_is_in_one_table_and_duplicates_are_named(
    tmp_path: Path, roots: dict[str, Root], mode: str
) -> None:
    corpus = corpus_of(duplicates=mode)
    assert corpus.filter
    tables, listed, out = heard_of(tmp_path, corpus, roots)
    heard = read_table(out, decisions_path(0))
    kept = judge(tables.table(), heard, corpus.filter, listed)
    expected = ["s/en/a", "s/en/b"] if mode == "drop" else [f"s/en/{n}" for n in "abcd"]
    assert kept.listing.wanted["id"].to_pylist() == expected
    assert kept.lengths.tolist() == [16_000] * len(expected)
    left = kept.listing.left_out.to_pylist()
    assert [(row["id"], row["reason"]) for row in left] == (
        [("s/en/c", "the same audio as s/en/a"), ("s/en/d", "the same audio as s/en/a")]
        if mode == "drop"
        else []
    ) + [("s/fr/e", "language")]
    assert kept.listing.quarantine["id"].to_pylist() == ["s/en/broken"]
    assert kept.duplicates.to_pylist() == [
        {"id": "s/en/c", "source": "s", "same_as": "s/en/a"},
        {"id": "s/en/d", "source": "s", "same_as": "s/en/a"},
    ]


def test_decisions_are_the_same_bytes_whoever_takes_them(
    tmp_path: Path, roots: dict[str, Root]
) -> None:
    corpus = corpus_of(voice_activity={})
    _, _, one = heard_of(tmp_path / "one", corpus, roots)
    _, _, two = heard_of(tmp_path / "two", corpus, roots)
    assert one.read_bytes(decisions_path(0)) == two.read_bytes(decisions_path(0))


def test_noise_is_no_speech(tmp_path: Path, roots: dict[str, Root]) -> None:
    corpus = corpus_of(voice_activity={})
    assert corpus.filter
    tables, listed, out = heard_of(tmp_path, corpus, roots)
    heard = read_table(out, decisions_path(0))
    kept = judge(tables.table(), heard, corpus.filter, listed)
    assert kept.listing.wanted.num_rows == 0
    with pytest.raises(
        DataError, match=r"none of 6 recordings is left \(no speech: 4, language: 1"
    ):
        require_usable(corpus, kept.listing)
    assert set(kept.listing.left_out["reason"].to_pylist()) == {"no speech", "language"}
    assert kept.listing.wanted["spans_s"].type == tables.table()["spans_s"].type


def test_times_of_speech_are_for_recordings_without_times_of_their_own(
    tmp_path: Path, roots: dict[str, Root]
) -> None:
    corpus = corpus_of(voice_activity={})
    assert corpus.filter
    tables, listed, out = heard_of(tmp_path, corpus, roots)
    heard, rows = (t.to_pylist() for t in (read_table(out, decisions_path(0)), tables.table()))
    for decision in heard:
        decision |= {"left_out": None, "speech_s": [[0.1, 0.4], [0.5, 0.9]]}
    rows[0]["spans_s"] = [[0.2, 0.3]]
    schemas = read_table(out, decisions_path(0)).schema, tables.table().schema
    decided, table = (
        schema.empty_table().from_pylist(found, schema)
        for found, schema in zip((heard, rows), schemas, strict=True)
    )
    kept = judge(table, decided, corpus.filter, listed)
    spans = dict(zip(*(kept.listing.wanted[n].to_pylist() for n in ("id", "spans_s")), strict=True))
    assert spans["s/en/a"] == [[0.2, 0.3]]
    assert spans["s/en/b"] == [[0.1, 0.4], [0.5, 0.9]]


def test_a_recording_has_the_language_that_was_heard_or_else_its_own(
    tmp_path: Path, roots: dict[str, Root]
) -> None:
    """Where several languages are kept, and the corpus does not name one."""
    write_wave(roots["s"].path / "x.wav", 16_000)
    write_wave(roots["s"].path / "y.wav", 16_000)
    corpus = corpus_of(language_id=MODEL).model_copy(update={"languages": ("en", "fr")})
    assert corpus.filter
    listed = Storage(str(tmp_path / "corpus"))
    table = make_corpus(listed, corpus, roots).table()
    said = {"s/x": Identified("fr", 0.7, 0.9), "s/y": Identified("en", 0.8, 0.9)}
    decided = [
        {"id": name, "num_samples": 16_000, "digest": name}
        | (said[name]._asdict() if name in said else {})
        for name in table["id"].to_pylist()
    ]
    heard = pa.Table.from_pylist(decided, DECISIONS_SCHEMA)
    wanted = judge(table, heard, corpus.filter, listed).listing.wanted
    languages = dict(zip(*(wanted[n].to_pylist() for n in ("id", "language")), strict=True))
    assert languages == {
        **{f"s/en/{name}": "en" for name in ("a", "b", "broken", "c", "d")},
        "s/fr/e": "fr",
        "s/x": "fr",
        "s/y": "en",
    }


def test_an_unknown_language_is_listed_only_where_it_will_be_heard(
    tmp_path: Path, roots: dict[str, Root]
) -> None:
    write_wave(roots["s"].path / "x.wav", 16_000)
    plain, asked = corpus_of(), corpus_of(language_id=MODEL)
    found = [
        make_corpus(Storage(str(tmp_path / str(n))), corpus, roots).table()["id"].to_pylist()
        for n, corpus in enumerate((plain, asked))
    ]
    assert "s/x" in found[1]
    assert sorted({*found[0], "s/x"}) == sorted(found[1])


SPEECH = (Stretch(0.0, 1.0),)


@pytest.mark.parametrize(
    ("filter_", "heard", "identifies", "reason"),
    [
        ({}, Heard(1, ""), False, None),
        ({"voice_activity": {}}, Heard(1, ""), False, "no speech"),
        ({"voice_activity": {}}, Heard(1, "", SPEECH), False, None),
        ({"language_id": MODEL}, Heard(1, ""), True, "no speech"),
        ({"language_id": MODEL}, Heard(1, "", SPEECH), True, "no speech"),
        ({"voice_activity": {}, "language_id": MODEL}, Heard(1, "", SPEECH), True, "no speech"),
        (
            {"voice_activity": {}, "language_id": MODEL},
            Heard(1, "", (), Identified("en", 0.9, 0.9)),
            True,
            "no speech",
        ),
        ({"language_id": MODEL}, Heard(1, "", (), Identified("en", 0.9, 0.9)), True, None),
        ({"language_id": MODEL}, Heard(1, ""), False, None),
        ({"language_id": MODEL}, Heard(1, "", SPEECH, Identified("fr", 0.6, 0.5)), True, None),
        (
            {"language_id": MODEL},
            Heard(1, "", SPEECH, Identified("fr", 0.6, 0.4)),
            True,
            "language: sounds like fr (0.60)",
        ),
    ],
)
def test_decisions(filter_: Any, heard: Heard, identifies: bool, reason: str | None) -> None:
    assert left_out(heard, Filter.model_validate(filter_), identifies=identifies) == reason


def test_runs_are_neighbours_with_about_equal_audio() -> None:
    hour = 3600 * 16_000
    lengths = np.array([hour // 4] * 4 + [3 * hour] + [hour // 2] * 3)
    found = runs(lengths, 0.5)
    assert found == [(0, 2), (2, 4), (4, 5), (5, 6), (6, 7), (7, 8)]
    assert runs(np.zeros(3, np.int64), 0.5) == [(0, 3)]


def test_a_model_that_is_another_or_nowhere_is_refused(tmp_path: Path) -> None:
    wanted = LanguageId.model_validate(MODEL)
    with pytest.raises(RequestError, match="no folder here; name it in the cluster's models"):
        require_model(tmp_path / "none", wanted)
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(CorruptError, match=r"corpus.filter.language_id.sha256: .* has 2d71"):
        require_model(tmp_path, wanted)


def test_places_of_what_is_left_are_found_again_elsewhere(
    tmp_path: Path, roots: dict[str, Root]
) -> None:
    corpus = corpus_of(duplicates="drop")
    assert corpus.filter
    tables, listed, out = heard_of(tmp_path, corpus, roots)
    kept = judge(tables.table(), read_table(out, decisions_path(0)), corpus.filter, listed)
    wanted = kept.listing.wanted
    out.create("recordings/000000.parquet", _parquet(wanted))
    folder = places.ensured(out, corpus, roots)
    found = read_table(out, f"{folder}/000000.parquet")
    assert found["path"].to_pylist() == ["en/a.wav", "en/b.wav"]


def _parquet(table: Any) -> bytes:
    import io

    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


@dataclass(frozen=True)
class CountedRoot(Root):
    """A root that knows what of it was decoded."""

    opened: list[str] = field(default_factory=list)

    def blocks(self, decoders: Any, leaf: Any, **more: Any) -> Iterator[Wave]:
        self.opened.append(leaf.path)
        return super().blocks(decoders, leaf, **more)


@pytest.mark.parametrize("language", ["en", ""])
def test_a_file_of_many_recordings_is_heard_once(tmp_path: Path, language: str) -> None:
    """Where its language is asked for as well."""
    write_wave(tmp_path / "root/a.wav", 60 * 16_000)
    (tmp_path / "root/b.wav").write_bytes(b"no")
    rows = [f"{name}.wav,{n},1,{name}{n:02d},{language}" for name in "ab" for n in range(1, 21)]
    table = "\n".join(["path,offset,duration,id,lang", *rows])
    (tmp_path / "root/manifest.csv").write_text(table)
    source = {"name": "s", "adapter": "manifest"}
    about = {"sources": [source], "filter": {"voice_activity": {}, "language_id": MODEL}}
    roots = {"s": CountedRoot(tmp_path / "root")}
    model = str(tiny_whisper(tmp_path / "whisper"))
    tables, _, out = heard_of(tmp_path, Corpus.model_validate(about), roots, model)
    assert roots["s"].opened == ["a.wav", "b.wav"]
    found = read_table(out, decisions_path(0)).to_pylist()
    assert [row["num_samples"] for row in found] == [60 * 16_000] * 20 + [0] * 20
    assert [bool(row["unreadable"]) for row in found] == [False] * 20 + [True] * 20
    lengths = to_be_decoded(tables.table())
    assert np.flatnonzero(lengths).tolist() == [0, 20]
    assert lengths[0] == 60 * 16_000
    assert not len(to_be_decoded(tables.table().slice(0, 0)))


def test_decisions_of_other_recordings_are_none_of_these(
    tmp_path: Path, roots: dict[str, Root]
) -> None:
    corpus = corpus_of()
    assert corpus.filter
    tables, listed, out = heard_of(tmp_path, corpus, roots)
    heard = read_table(out, decisions_path(0))
    for other in (heard.slice(1), heard.take(list(range(len(heard)))[::-1])):
        with pytest.raises(CorruptError, match="of other recordings than the corpus lists"):
            judge(tables.table(), other, corpus.filter, listed)


def test_many_times_of_one_recording_take_no_memory_for_all() -> None:
    num = 300
    spans = [[[float(n), n + 0.5] for n in range(20_000)], *[[[0.0, 1.0]]] * (num - 1)]
    heard = pa.Table.from_pylist([{"digest": "d" * 32}] * num, DECISIONS_SCHEMA)
    rows = pa.table({"id": [f"s/{n:03d}" for n in range(num)], "spans_s": spans})
    tracemalloc.start()
    earlier = same_as(rows, heard).to_pylist()
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert earlier == [None, None, *["s/001"] * (num - 2)]
    assert peak_bytes < 50e6
