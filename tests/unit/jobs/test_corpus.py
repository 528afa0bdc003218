"""The corpus stage on a small tree of real files, without a run around it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from jobs.corpus import (
    choose,
    cut,
    is_silent,
    nothing_wanted,
    probe,
    share_out,
    write_tables,
)
from jobs.lm.packing import split_of
from orchestrator.errors import DataError
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Corpus, Source, Split, Windows

RATE_HZ = 16_000


def corpus_of(**over: Any) -> Corpus:
    given = {"sources": [Source(name="a"), Source(name="b")], "shard_hours": 2 / 3600, **over}
    return Corpus.model_validate({"windows": {"min_s": 0.4, "max_s": 1.5}, **given})


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    for path, seconds in {
        "a/en/x.wav": 1.0,
        "a/en/long.wav": 4.0,
        "a/es/y.wav": 1.0,
        "b/en/tiny.wav": 0.1,
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / path, rng.normal(size=int(seconds * RATE_HZ)) / 10, RATE_HZ)
    soundfile.write(tmp_path / "b/en/still.wav", np.zeros(RATE_HZ), RATE_HZ)
    (tmp_path / "b/en/broken.wav").write_bytes(b"no")
    return {"a": tmp_path / "a", "b": tmp_path / "b"}


def build(out: Storage, corpus: Corpus, roots: dict[str, Path]) -> dict[str, Any]:
    wanted, left_out = choose(corpus, roots)
    probes = [probe(r, roots[r.source], corpus.windows) for r in wanted]
    return write_tables(out, corpus, wanted, probes, left_out)


def rows(out: Storage, path: str) -> list[dict[str, Any]]:
    return pq.read_table(io.BytesIO(out.read_bytes(path))).to_pylist()


def test_every_file_is_in_exactly_one_table(tmp_path: Path, roots: dict[str, Path]) -> None:
    out = Storage(str(tmp_path / "out"))
    facts = build(out, corpus_of(), roots)
    assert [
        (r["id"], r["start_sample"], r["num_samples"]) for r in rows(out, "manifest.parquet")
    ] == [
        ("a/en/long@0", 0, 21_333),
        ("a/en/long@21333", 21_333, 21_333),
        ("a/en/long@42666", 42_666, 21_334),
        ("a/en/x", 0, 16_000),
    ]
    assert {(r["path"], r["reason"]) for r in rows(out, "left_out.parquet")} == {
        ("es/y.wav", "language"),
        ("en/tiny.wav", "shorter than 0.4 s"),
        ("en/still.wav", "silent"),
    }
    (bad,) = rows(out, "quarantine.parquet")
    assert bad["path"] == "en/broken.wav"
    assert bad["reason"]
    assert [r["shard"] for r in rows(out, "shards.parquet")] == [0, 1, 1, 2]
    assert facts == {
        "kept_hours": pytest.approx(5 / 3600),
        "num_recordings": 2,
        "num_utterances": 4,
        "num_shards": 3,
        "num_left_out": 3,
        "num_quarantined": 1,
    }


def test_the_same_audio_gives_the_same_bytes(tmp_path: Path, roots: dict[str, Path]) -> None:
    outs = [Storage(str(tmp_path / name)) for name in ("one", "two")]
    for out in outs:
        build(out, corpus_of(), roots)
    assert len(outs[0].list()) == 4
    assert {p: outs[0].digest(p) for p in outs[0].list()} == {
        p: outs[1].digest(p) for p in outs[1].list()
    }


def test_a_fraction_is_part_of_every_larger_one(roots: dict[str, Path]) -> None:
    for i in range(40):
        (roots["a"] / f"en/{i}.wav").touch()
    quarter, half = (
        {r.id for r in choose(corpus_of(data_fraction=f), roots)[0]} for f in (0.25, 0.5)
    )
    assert quarter < half
    assert 3 <= len(quarter) <= 20
    assert 12 <= len(half) <= 33


def test_the_data_fraction_leaves_the_split_alone(tmp_path: Path) -> None:
    """A part of the data is split as the whole is: neither hash may decide the other."""
    (tmp_path / "en").mkdir()
    for n in range(2000):
        (tmp_path / "en" / f"{n}.wav").touch()
    part, _ = choose(corpus_of(sources=[Source(name="s")], data_fraction=0.4), {"s": tmp_path})
    held_out = [r for r in part if split_of(r.id, Split(valid=0.03, test=0.08)) != "train"]
    assert 0.07 < len(held_out) / len(part) < 0.15


def test_shards_are_runs_of_neighbours_and_none_is_empty() -> None:
    sizes = [int(s) for s in np.random.default_rng(1).integers(8_000, 480_000, 500)]
    shards = share_out(sizes, 0.05)
    assert shards == sorted(shards)
    assert set(shards) == set(range(shards[-1] + 1))
    audio = [
        sum(s for s, n in zip(sizes, shards, strict=True) if n == shard) for shard in set(shards)
    ]
    assert max(audio) - min(audio) < 2 * 480_000


@pytest.mark.parametrize("sizes", [[1000, 1, 1, 1, 1], [1, 1, 1, 1, 1000], [5], [1, 1000, 1]])
def test_one_very_long_row_leaves_no_shard_empty(sizes: list[int]) -> None:
    shards = share_out(sizes, sum(sizes) / 3 / 3600 / RATE_HZ)
    assert set(shards) == set(range(min(3, len(sizes))))


def test_a_corpus_with_nothing_usable_says_so(tmp_path: Path, roots: dict[str, Path]) -> None:
    corpus = corpus_of(sources=[Source(name="b")])
    with pytest.raises(DataError, match=r"can be used \(1 shorter than 0.4 s, 1 silent, 1 unr"):
        build(Storage(str(tmp_path / "out")), corpus, roots)


def test_a_fraction_that_leaves_nothing_is_named(roots: dict[str, Path]) -> None:
    corpus = corpus_of(data_fraction=1e-9)
    wanted, left_out = choose(corpus, roots)
    assert wanted == []
    assert nothing_wanted(corpus, left_out) == (
        "corpus.data_fraction: 1e-09 of 5 recordings is none of them; raise it or add recordings"
    )


def test_a_language_that_nobody_speaks_is_named(roots: dict[str, Path]) -> None:
    corpus = corpus_of(languages=["fr"], data_fraction=1e-9)
    _, left_out = choose(corpus, roots)
    assert nothing_wanted(corpus, left_out) == (
        "corpus: no recording in fr below the roots (found: en, es); check corpus.languages and "
        "the cluster's data"
    )


WINDOWS = Windows(min_s=0.5, max_s=10.0)


@pytest.mark.parametrize(
    ("seconds", "count"), [(0.49, 0), (0.5, 1), (10.0, 1), (10.1, 2), (95.0, 10)]
)
def test_windows_are_bounded_equal_and_leave_nothing_out(seconds: float, count: int) -> None:
    num_samples = int(seconds * RATE_HZ)
    spans = cut(num_samples, WINDOWS)
    assert len(spans) == count
    if spans:
        sizes = [s.num_samples for s in spans]
        assert sum(sizes) == num_samples
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= WINDOWS.max_s * RATE_HZ
        assert [s.start_sample for s in spans] == [sum(sizes[:i]) for i in range(count)]


def test_silence_is_what_nobody_hears() -> None:
    noise = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    assert is_silent(0.0001 * noise)
    assert not is_silent(0.1 * noise)
    assert is_silent(np.zeros(0, np.float32))
