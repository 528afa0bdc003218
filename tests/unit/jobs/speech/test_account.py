"""Every recording has one fate, however many shards it is in."""

from __future__ import annotations

import pickle
import random

import pyarrow as pa
import pytest

from jobs.speech.account import Account, Books, Fate, require_readable
from jobs.unit_shards import SCHEMA
from orchestrator.errors import DataError


def shard(*rows: tuple[str, int, str]) -> Account:
    """Of (recording, seconds, why it is not used) in that order; ``!`` marks what is unreadable."""
    table = [
        {
            "recording": name,
            "source": name[0],
            "num_samples": seconds * 16_000,
            "left_out": None if not why or why.startswith("!") else why,
            "unreadable": why[1:] if why.startswith("!") else None,
        }
        for name, seconds, why in rows
    ]
    return Account.of(pa.Table.from_pylist(table, SCHEMA))


def fates(books: Books) -> dict[str, list[tuple[str, str]]]:
    return {fate.name: [(o.id, o.reason) for o in books.of_fate(fate)] for fate in Fate}


def test_each_recording_is_counted_once() -> None:
    books = Books()
    books.add(0, shard(("a1", 1, ""), ("a2", 1, "silent"), ("a3", 2, ""), ("b1", 1, "silent")))
    books.add(
        1, shard(("b1", 3, ""), ("b2", 0, "!damaged"), ("b3", 1, "short"), ("b3", 2, "silent"))
    )
    books.add(2, shard())
    books.add(3, shard(("b3", 0, "!cut short")))
    facts = books.facts()
    assert facts["sources"]["a"] == {
        "num_recordings": 2,
        "num_left_out": 1,
        "num_quarantined": 0,
        "used_hours": 3 / 3600,
        "left_out_hours": 1 / 3600,
    }
    assert (facts["num_recordings"], facts["num_left_out"], facts["num_quarantined"]) == (3, 1, 2)
    assert facts["sources"]["b"]["used_hours"] == 3 / 3600
    assert fates(books)["LEFT_OUT"] == [("a2", "silent")]
    assert fates(books)["UNREADABLE"] == [
        ("b2", "damaged"),
        ("b3", "cut short; short; silent"),
    ]


def test_the_order_of_shards_does_not_matter() -> None:
    shards = [
        shard(("a1", 1, ""), ("a2", 1, "silent")),
        shard(("a2", 1, "")),
        shard(("a2", 1, "silent"), ("a3", 1, ""), ("b1", 7, ""), ("c1", 0, "short")),
        shard(("c1", 1, "silent"), ("c2", 13, ""), ("d1", 11, ""), ("d2", 0, "!damaged")),
        shard(("d2", 0, "!cut short"), ("e1", 10**6 + 1, "")),
    ]
    one, other = Books(), Books()
    for number, account in enumerate(shards):
        one.add(number, account)
    for number, account in reversed(list(enumerate(shards))):
        other.add(number, account)
    assert one.facts() == other.facts()
    assert fates(one) == fates(other)
    assert one.facts()["num_recordings"] == 7
    assert one.facts()["left_out_hours"] == pytest.approx(3 / 3600)


def test_recordings_are_forgotten_when_all_parts_are_there() -> None:
    """Recording ``a7`` has three parts, in two shards; ``a2`` fills five shards and more."""
    lengths = [*[1] * 5, 0, *[1] * 200]  # the sixth shard has no rows
    names = [("a0", "a1", "a2")] + [("a2",)] * 5 + [(f"a{n}", f"a{n + 1}") for n in range(2, 202)]
    shards = [
        shard(*((name, length, "") for name in own if length))
        for own, length in zip(names, lengths, strict=True)
    ]
    shards[9] = shard(("a5", 1, ""), ("a6", 0, "!damaged"))
    totals = set()
    for seed in range(10):
        books, order = Books(), list(range(len(shards)))
        random.Random(seed).shuffle(order)
        if not seed:
            order.sort()
        num_held = []
        for number in order:
            books.add(number, shards[number])
            num_held.append(len(pickle.dumps(books)))
        assert seed or num_held[-1] < 1.1 * num_held[20]
        totals.add(str((books.facts(), fates(books)["UNREADABLE"])))
    (total,) = totals
    assert "'num_recordings': 202, 'num_left_out': 0, 'num_quarantined': 1" in total


def test_some_may_be_unreadable_and_no_more() -> None:
    few = {f"r{n}": "damaged" for n in range(5)}
    require_readable(few, 6, 0)
    more = {f"r{n:02d}": f"damaged {n}" for n in range(12)}
    require_readable(more, 1200, 1)
    said = r"max_quarantine_percent: 12 of 1199 .*more than 1 %: r00: damaged 0; .*r09: damaged 9; "
    with pytest.raises(DataError, match=said) as error:
        require_readable(more, 1199, 1)
    assert "r10" not in str(error.value)
