"""Every recording has one fate, however many shards it is in."""

from __future__ import annotations

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
    books.add(shard(("a1", 1, ""), ("a2", 1, "silent"), ("a3", 2, ""), ("b1", 1, "silent")))
    books.add(shard(("b1", 3, ""), ("b2", 0, "!damaged"), ("b3", 1, "short"), ("b3", 2, "silent")))
    books.add(shard())
    books.add(shard(("b3", 0, "!cut short")))
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
        ("b3", "short; silent; cut short"),
    ]


def test_the_order_of_shards_does_not_matter() -> None:
    shards = [
        shard(("a1", 1, ""), ("a2", 1, "silent")),
        shard(("a2", 1, "")),
        shard(("a2", 1, "silent"), ("a3", 1, "")),
    ]
    one, other = Books(), Books()
    for account in shards:
        one.add(account)
    for account in reversed(shards):
        other.add(account)
    assert one.facts() == other.facts()
    assert one.facts()["num_recordings"] == 3
    assert one.facts()["left_out_hours"] == pytest.approx(2 / 3600)


def test_some_may_be_unreadable_and_no_more() -> None:
    few = {f"r{n}": "damaged" for n in range(5)}
    require_readable(few, 6, 0)
    more = {f"r{n:02d}": f"damaged {n}" for n in range(12)}
    require_readable(more, 1200, 1)
    said = r"max_quarantine_percent: 12 of 1199 .*more than 1 %: r00: damaged 0; .*r09: damaged 9; "
    with pytest.raises(DataError, match=said) as error:
        require_readable(more, 1199, 1)
    assert "r10" not in str(error.value)
