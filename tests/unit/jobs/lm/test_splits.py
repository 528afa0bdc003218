"""Groups of recordings are dealt out by their hashes; none of them is in two splits."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pytest

from jobs.lm.splits import SPLITS, Deal, deal_out, groups_of, sources_of, used_groups
from orchestrator.errors import DataError
from orchestrator.spec.recipe import Split

SHARES = Split(valid=0.2, test=0.2)
PINNED = ["train", "train", "train", "train", "train", "test", "valid", "train"]


def names(count: int, seed: int = 0) -> list[str]:
    return [f"s/{seed}/{n}" for n in range(count)]


def table(rows: Sequence[Mapping[str, str | None]]) -> pa.Table:
    schema = pa.schema([(n, pa.string()) for n in ("recording", "source", "speaker", "session")])
    return pa.Table.from_pylist(list(rows), schema)


def splits(deal: Deal, groups: Sequence[str]) -> list[str | None]:
    codes = deal.codes(pa.chunked_array([pa.array(groups, pa.string())]))
    return [SPLITS[code] if code >= 0 else None for code in codes.tolist()]


def dealt(groups: Sequence[str], shares: Split) -> list[str | None]:
    return splits(deal_out(shares, [pa.chunked_array([pa.array(groups, pa.string())])]), groups)


def test_the_split_is_pinned() -> None:
    assert splits(Deal.by_share(SHARES), [f"r{n}" for n in range(8)]) == PINNED


def test_shares_are_respected() -> None:
    found = dealt([f"recording {n}" for n in range(4000)], Split(valid=0.1, test=0.3))
    assert found.count("valid") / 4000 == pytest.approx(0.1, abs=0.02)
    assert found.count("test") / 4000 == pytest.approx(0.3, abs=0.03)


def test_growing_the_test_share_moves_nothing_into_valid() -> None:
    groups = names(500)
    small, large = (dealt(groups, Split(valid=0.1, test=share)) for share in (0.1, 0.3))
    for before, after in zip(small, large, strict=True):
        assert before == after or before == "train"


def test_a_smaller_part_of_training_lies_within_a_larger_one() -> None:
    """And what is held out stays, so that runs of 1, 10 and 100 % are compared on the same."""
    groups = [f"recording {n}" for n in range(4000)]
    parts = [1.0, 0.5, 0.1, 0.01]
    found = [dealt(groups, Split(valid=0.1, train_fraction=part)) for part in parts]
    sizes = [each.count("train") / found[0].count("train") for each in found]
    assert sizes == pytest.approx(parts, abs=0.03)
    for larger, smaller in itertools.pairwise(found):
        for before, after in zip(larger, smaller, strict=True):
            assert after == before or (before, after) == ("train", None)


@pytest.mark.parametrize("seed", range(40))
def test_each_split_of_any_small_corpus_has_one(seed: int) -> None:
    some = random.Random(seed)
    groups = names(some.randint(3, 40), seed)
    shares = Split(valid=some.choice([0.01, 0.1, 0.49]), test=some.choice([0.01, 0.2, 0.49]))
    found, by_share = dealt(groups, shares), splits(Deal.by_share(shares), groups)
    assert set(found) == set(SPLITS)
    if set(by_share) == set(SPLITS):
        assert found == by_share
    elif len(groups) > 10:
        assert abs(found.count("valid") - max(1, shares.valid * len(groups))) <= 1
    places = [place for place, _ in Deal.by_share(shares).places(pa.array(groups)).tolist()]
    ranked = [split for _, split in sorted(zip(places, found, strict=True))]
    assert [split for split, _ in itertools.groupby(ranked)] == ["valid", "test", "train"]


@pytest.mark.parametrize("seed", range(20))
def test_a_part_of_a_few_recordings_is_one_at_least(seed: int) -> None:
    """And valid and test are what they are without it."""
    groups = names(5, seed)
    whole, half, least = (
        dealt(groups, Split(train_fraction=fraction)) for fraction in (1.0, 0.5, 0.0001)
    )
    for smaller in (half, least):
        pairs = set(zip(whole, smaller, strict=True))
        assert pairs <= {(s, s) for s in SPLITS} | {("train", None)}
    assert half.count("train") >= least.count("train") == 1
    assert all(h == "train" for h, s in zip(half, least, strict=True) if s == "train")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_three_splits_need_three_groups(count: int) -> None:
    with pytest.raises(DataError) as raised:
        dealt(names(count), Split())
    assert str(raised.value) == (
        f"split: train, valid and test need a session each, and there are {count} of them, give "
        "split.by: recording, or add recordings"
    )


def test_a_deal_reads_no_more_than_it_needs() -> None:
    """Some millions of recordings are known by three, and pieces may repeat a group."""
    read = []

    def pieces() -> itertools.chain[pa.ChunkedArray]:
        for n in range(100):
            read.append(n)
            yield pa.chunked_array([pa.array([f"r{n}", f"r{n}", f"r{n - 1}"])])

    assert deal_out(SHARES, pieces()) == Deal.by_share(SHARES)
    assert read == list(range(7))


def test_pieces_are_dealt_out_as_the_whole() -> None:
    groups, shares = names(30), Split(valid=0.001, test=0.001)
    whole = deal_out(shares, [pa.chunked_array([pa.array(groups)])])
    pieces = [pa.chunked_array([pa.array(groups[n : n + 7])]) for n in range(0, 30, 5)]
    assert deal_out(shares, pieces) == whole
    assert whole.by_rank


BOOKS = table(
    [
        {"recording": "a/1", "source": "a", "speaker": "ann", "session": "emma"},
        {"recording": "a/2", "source": "a", "speaker": "bob", "session": "emma"},
        {"recording": "b/1", "source": "b", "speaker": "ann", "session": "emma"},
        {"recording": "b/2", "source": "b", "speaker": "ann", "session": ""},
        {"recording": "b/3", "source": None, "speaker": "ann", "session": None},
    ]
)


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("recording", ["a/1", "a/2", "b/1", "b/2", "b/3"]),
        ("session", ["a/emma", "a/emma", "b/emma", "b/2", "b/3"]),
        ("speaker", ["a/ann", "a/bob", "b/ann", "b/ann", "b/ann"]),
    ],
)
def test_groups_are_those_of_a_source(by: str, groups: list[str]) -> None:
    assert groups_of(BOOKS, by).to_pylist() == groups
    assert sources_of(BOOKS).to_pylist() == ["a", "a", "b", "b", "b"]


@pytest.mark.parametrize("speaker", ["", None])
def test_a_recording_without_a_speaker_is_named(speaker: str | None) -> None:
    row = {"recording": "c/7", "source": "c", "speaker": speaker, "session": "x"}
    with pytest.raises(DataError) as raised:
        groups_of(pa.concat_tables([BOOKS, table([row])]), "speaker")
    assert str(raised.value) == (
        "split.by: speaker: 1 of 6 recordings name no speaker, the first is c/7; give split.by: "
        "session or recording, or a manifest that names all speakers"
    )


@pytest.mark.parametrize("by", ["session", "speaker"])
def test_no_voice_and_no_book_is_in_two_splits(by: str) -> None:
    some = random.Random(1)
    rows = [
        {
            "recording": f"s/{n}",
            "source": "s",
            "speaker": f"v{some.randint(0, 40)}",
            "session": f"b{some.randint(0, 60)}",
        }
        for n in range(1000)
    ]
    groups = groups_of(table(rows), by)
    found = deal_out(Split(by=by), [groups]).codes(groups).tolist()
    assert {0, 1, 2} == set(found)
    of = {(row[by], code) for row, code in zip(rows, found, strict=True)}
    assert len(of) == len({row[by] for row in rows})


def test_utterances_without_units_are_no_group() -> None:
    units = pa.array([[], [1], [2, 3], [], []], pa.list_(pa.uint16()))
    (groups,) = used_groups([BOOKS.append_column("units", units)], "recording")
    assert groups.to_pylist() == ["a/2", "b/1"]
