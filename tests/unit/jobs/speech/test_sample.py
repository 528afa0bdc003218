"""A random sample of a corpus whose lengths are known by headers alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.audio.corpus_tables import CorpusTables
from jobs.audio.roots import Root
from orchestrator.errors import DataError
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Corpus, Source, Windows
from tests.corpora import make_corpus, sampled, write_wave

SECOND = 16_000
WINDOWS = Windows(max_s=1.0)


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Root]:
    for number in range(20):
        write_wave(tmp_path / f"root/en/{number:02d}.wav", SECOND)
    write_wave(tmp_path / "root/en/long.wav", 20 * SECOND)
    return {"s": Root(tmp_path / "root")}


def tables_of(tmp_path: Path, roots: dict[str, Root]) -> CorpusTables:
    corpus = Corpus(sources=(Source(name="s"),), windows=WINDOWS)
    return make_corpus(Storage(str(tmp_path / "out")), corpus, roots)


def drawn(tables: CorpusTables, roots: dict[str, Root], seconds: float, seed: int = 0) -> list[str]:
    found = sampled(tables, roots, hours=seconds / 3600, seed=seed, windows=WINDOWS)
    return [measured.id for measured in found]


def test_the_sample_has_the_hours_asked_for_in_the_corpus_order(
    tmp_path: Path, roots: dict[str, Root]
) -> None:
    tables = tables_of(tmp_path, roots)
    found = sampled(tables, roots, hours=12 / 3600, windows=WINDOWS)
    assert sum(m.num_samples for m in found) == 12 * SECOND
    assert [(m.row, m.start_sample) for m in found] == sorted(
        (m.row, m.start_sample) for m in found
    )
    assert len(drawn(tables, roots, 12.01)) == 13, "the last one may end beyond them"
    assert 2 <= sum("long@" in m.id for m in found) <= 10, "a long recording has its share"


def test_the_sample_grows_and_depends_on_the_seed(tmp_path: Path, roots: dict[str, Root]) -> None:
    tables = tables_of(tmp_path, roots)
    small = set(drawn(tables, roots, 5))
    assert small < set(drawn(tables, roots, 12))
    assert small != set(drawn(tables, roots, 5, seed=1))
    assert len(drawn(tables, roots, 1e6)) == 40


def test_what_cannot_be_used_is_replaced(tmp_path: Path, roots: dict[str, Root]) -> None:
    tables = tables_of(tmp_path, roots)
    before = drawn(tables, roots, 5)
    for number in range(20):
        path = roots["s"].path / f"en/{number:02d}.wav"
        path.write_bytes(path.read_bytes()[:-1_000])
    after = drawn(tables, roots, 5)
    assert len(after) == 5
    assert {name for name in before if "long" in name} < set(after)
    assert all("long" in name for name in after)


def test_nothing_to_be_heard_is_the_datas_fault(tmp_path: Path, roots: dict[str, Root]) -> None:
    tables = tables_of(tmp_path, roots)
    for path in roots["s"].path.rglob("*.wav"):
        path.write_bytes(b"no")
    with pytest.raises(DataError, match="nothing can be heard in any recording"):
        drawn(tables, roots, 5)
