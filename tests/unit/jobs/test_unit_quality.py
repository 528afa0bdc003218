"""Which recordings are judged, and which frames are which triphone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from jobs.audio.alignments import Alignments, Phone
from jobs.audio.corpus_tables import CorpusTables
from jobs.audio.roots import Root
from jobs.speech.grid import Grid
from jobs.speech.judged import Judged, Spread
from jobs.unit_quality import (
    Chosen,
    Marked,
    choose,
    doubts_of,
    mfcc_units,
    parts_of,
    require_enough,
)
from orchestrator.errors import DataError
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Corpus, Source, UnitQuality, Windows
from tests.corpora import make_corpus, write_wave

PHONES = [
    Phone(0.0, 0.1, ""),
    Phone(0.1, 0.2, "a"),
    Phone(0.2, 0.3, "b"),
    Phone(0.3, 0.4, "c"),
    Phone(0.4, 0.5, "d"),
    Phone(0.6, 0.7, "e"),
]
WINDOWS = Windows(min_s=0.1, max_s=30.0)
GRID = Grid(hop=800, field=800)
"""20 Hz; frame t is at 0.05 t + 0.025 s."""


def tables_of(folder: Path, names: Sequence[str]) -> CorpusTables:
    """A corpus of recordings of nine seconds each."""
    for name in names:
        write_wave(folder / "speech" / f"{name}.wav", 9 * 16_000)
    corpus = Corpus(sources=(Source(name="s", language="en"),))
    return make_corpus(Storage(str(folder / "corpus")), corpus, {"s": Root(folder / "speech")})


def judged(num_frames: int, start_sample: int = 0) -> Judged:
    """A window that means nothing."""
    units_T = np.arange(num_frames, dtype=np.uint16)
    return Judged(
        7, start_sample, num_frames * 800, units_T, np.zeros((num_frames, 39), np.float32)
    )


def test_triphones_are_three_phones_that_follow_each_other() -> None:
    marked = Marked.of(judged(14), PHONES, GRID)
    assert marked.labels_T == ["", "", *"aabbccdd", "", "", "e", "e"]
    assert marked.triphones == [("a", "b", "c", slice(2, 8)), ("b", "c", "d", slice(4, 10))]


def test_a_window_has_the_triphones_that_lie_in_it() -> None:
    marked = Marked.of(judged(9, start_sample=1600), PHONES, GRID)
    assert marked.labels_T == [*"aabbccdd", ""]
    assert marked.triphones == [("a", "b", "c", slice(0, 6)), ("b", "c", "d", slice(2, 8))]
    assert Marked.of(judged(5, start_sample=1600), PHONES, GRID).triphones == []


def test_triphones_that_last_are_none() -> None:
    slow = [phone._replace(start_s=5 * phone.start_s, end_s=5 * phone.end_s) for phone in PHONES]
    assert Marked.of(judged(70), slow, GRID).triphones == []


def test_what_is_left_of_the_variance() -> None:
    rng = np.random.default_rng(0)
    feats_TD = rng.normal(3, 2, (1000, 5))
    halves = np.split(feats_TD, 2)
    mean_D = feats_TD.mean(0)
    parts = [
        Spread(500, half.sum(0), float((half**2).sum()), float(((half - mean_D) ** 2).sum()))
        for half in halves
    ]
    assert (parts[0] + parts[1]).unexplained == pytest.approx(1)


def test_mfcc_has_as_many_clusters() -> None:
    rng = np.random.default_rng(0)
    heard = [
        judged(200)._replace(mfcc_TD=rng.normal(n % 2, 0.01, (200, 39)).astype(np.float32))
        for n in range(4)
    ]
    found = mfcc_units(heard, 2, seed=0)
    assert [set(units_T.tolist()) for units_T in found] in ([{0}, {1}] * 2, [{1}, {0}] * 2)


def chosen_of(
    tables: CorpusTables, phones: Path, seconds: float = 999, seed: int = 0
) -> list[Chosen]:
    settings = UnitQuality(alignments="phones", hours=seconds / 3600, seed=seed)
    return choose(tables, WINDOWS, Alignments(Root(phones).tree()), settings)


def test_recordings_are_chosen_by_their_names(tmp_path: Path) -> None:
    tables = tables_of(tmp_path / "eight", [f"r{n}" for n in range(8)])
    phones = tmp_path / "phones"
    phones.mkdir()
    for n in range(6):
        (phones / f"r{n}.PHN").write_text("0 16000 a\n")

    def rows(seconds: float, seed: int = 0) -> list[int]:
        return [c.row for c in chosen_of(tables, phones, seconds, seed)]

    assert rows(999) == list(range(6))
    assert len(rows(18)) == 2
    assert set(rows(18)) < set(rows(36))
    assert rows(18) != rows(18, seed=1)
    others = tables_of(tmp_path / "others", ["x"])
    with pytest.raises(DataError, match=r"none of its 6 phone times .* 1 recordings"):
        chosen_of(others, phones)


def test_phone_times_that_may_be_of_two_are_refused(tmp_path: Path) -> None:
    tables = tables_of(tmp_path / "two", ["a/r1", "b/r1"])
    (tmp_path / "phones" / "a").mkdir(parents=True)
    (tmp_path / "phones" / "a" / "r1.PHN").write_text("0 16000 a\n")
    assert [c.row for c in chosen_of(tables, tmp_path / "phones")] == [0]
    (tmp_path / "phones" / "a" / "r1.PHN").rename(tmp_path / "phones" / "r1.PHN")
    with pytest.raises(
        DataError, match=r"r1: these phone times could be those of s/a/r1 and of s/"
    ):
        chosen_of(tables, tmp_path / "phones")


def test_long_recordings_are_heard_in_parts_and_no_longer_than_asked(tmp_path: Path) -> None:
    tables = tables_of(tmp_path / "one", ["r"])
    (tmp_path / "phones").mkdir()
    (tmp_path / "phones" / "r.PHN").write_text("0 16000 a\n")
    rows = {row.number: row for row in tables.rows(0, 1)}

    def parts(seconds: float, max_s: float) -> list[list[tuple[int, int | None]]]:
        windows = Windows(min_s=0.1, max_s=max_s)
        settings = UnitQuality(alignments="phones", hours=seconds / 3600)
        chosen = choose(tables, windows, Alignments(Root(tmp_path / "phones").tree()), settings)
        return [[(p.first, p.end) for p in task] for task in parts_of(chosen, rows, windows)]

    assert parts(999, 2.0) == [[(0, None)]]
    assert parts(4.0, 2.0) == [[(0, 3)]]  # of five windows, as many as four seconds touch
    long = Chosen(0, ("r",), 0, 600 * 16_000)
    tasks = list(parts_of([long], rows, Windows(min_s=0.1, max_s=30.0)))
    assert [[(p.first, p.end) for p in task] for task in tasks] == [
        [(first, None if first == 16 else first + 4)] for first in range(0, 20, 4)
    ]


def test_too_little_audio_is_refused_before_any_is_encoded() -> None:
    ten_s = Chosen(0, ("r",), 0, 160_000)
    require_enough([ten_s], 50.0, 100)
    with pytest.raises(DataError, match=r"evaluate\.unit_quality: phone times of 10 s of audio"):
        require_enough([ten_s], 50.0, 500)


GOOD = {"pnmi": 0.6, "abx_within": 0.05, "abx_across": 0.1}
MFCC = {"pnmi": 0.35, "abx_within": 0.12, "abx_across": 0.25}
CODEBOOK = {"num_frames": 60_000, "num_units": 500, "num_unused": 3, "unexplained_variance": 0.6}


def test_good_units_raise_no_doubt() -> None:
    assert doubts_of(GOOD, MFCC, CODEBOOK) == []
    nothing = {"abx_within": None, "abx_across": None}
    assert doubts_of({**GOOD, **nothing}, {**MFCC, **nothing}, CODEBOOK) == []


@pytest.mark.parametrize(
    ("units", "codebook", "says"),
    [
        ({"pnmi": 0.35}, {}, "no more of the phones than clusters of MFCC"),
        ({"abx_across": 0.3}, {}, r"abx across speakers .* \(0.3 and 0.25\)"),
        ({}, {"num_unused": 51}, "51 of 500 units are in none"),
        ({}, {"num_unused": 51, "num_frames": 10_000}, "10,000 frames are few for 500 units"),
        ({}, {"unexplained_variance": 0.95}, "leaves 95% of the features' variance"),
    ],
)
def test_bad_units_raise_one(
    units: dict[str, float], codebook: dict[str, float], says: str
) -> None:
    (doubt,) = doubts_of({**GOOD, **units}, MFCC, {**CODEBOOK, **codebook})
    assert re.search(says, doubt)
