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
from jobs.unit_quality import Marked, choose, doubts_of, mfcc_units
from orchestrator.errors import DataError
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Corpus, Source, UnitQuality
from tests.corpora import make_corpus, write_wave

PHONES = [
    Phone(0.0, 0.1, ""),
    Phone(0.1, 0.2, "a"),
    Phone(0.2, 0.3, "b"),
    Phone(0.3, 0.4, "c"),
    Phone(0.4, 0.5, "d"),
    Phone(0.6, 0.7, "e"),
]
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


def test_recordings_are_chosen_by_their_names(tmp_path: Path) -> None:
    tables = tables_of(tmp_path / "eight", [f"r{n}" for n in range(8)])
    phones = tmp_path / "phones"
    phones.mkdir()
    for n in range(6):
        (phones / f"r{n}.PHN").write_text("0 16000 a\n")
    alignments = Alignments(Root(phones).tree())

    def chosen(seconds: float, seed: int = 0) -> list[str]:
        settings = UnitQuality(alignments="phones", hours=seconds / 3600, seed=seed)
        return [row.id for row in choose(tables, alignments, settings)]

    assert chosen(999) == [f"s/r{n}" for n in range(6)]
    assert len(chosen(18)) == 2
    assert set(chosen(18)) < set(chosen(36))
    assert chosen(18) != chosen(18, seed=1)
    others = tables_of(tmp_path / "others", ["x"])
    with pytest.raises(DataError, match=r"none of its 6 files of phone times .* 1 recordings"):
        choose(others, alignments, UnitQuality(alignments="phones"))


GOOD = {"pnmi": 0.6, "abx_within": 0.05, "abx_across": 0.1}
MFCC = {"pnmi": 0.35, "abx_within": 0.12, "abx_across": 0.25}
CODEBOOK = {"num_units": 500, "num_unused": 3, "unexplained_variance": 0.6}


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
        ({}, {"unexplained_variance": 0.95}, "leaves 95% of the features' variance"),
    ],
)
def test_bad_units_raise_one(
    units: dict[str, float], codebook: dict[str, float], says: str
) -> None:
    (doubt,) = doubts_of({**GOOD, **units}, MFCC, {**CODEBOOK, **codebook})
    assert re.search(says, doubt)
