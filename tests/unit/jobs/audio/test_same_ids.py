"""Recordings that have one id are named, whatever their number."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jobs.audio.corpora.recording import Recording
from jobs.audio.same_ids import SameIds
from jobs.audio.trees import Leaf


def recordings(*ids: str) -> list[Recording]:
    return [Recording(name, Leaf(f"{n}.wav", 1)) for n, name in enumerate(ids)]


def problem(listed: list[Recording], chunk: int = 2) -> str:
    ids = SameIds()
    for start in range(0, len(listed), chunk):
        ids.add(listed[start : start + chunk])
    return ids.problem(listed)


def test_ids_of_their_own_are_not_listed_again() -> None:
    def never() -> Iterator[Recording]:
        pytest.fail("asked for them again")
        yield from ()

    ids = SameIds()
    assert ids.problem(never()) == ""
    ids.add(recordings("a", "b", "A", "a ", "é"))
    assert ids.problem(never()) == ""


def test_both_of_one_id_are_named() -> None:
    assert problem(recordings("a", "b", "c", "b")) == (
        "1 recordings have the id of another: 1.wav and 3.wav are both 'b'; give each its own"
    )
    assert problem(recordings("x", "a", "a", "x", "a")).startswith(
        "3 recordings have the id of another: 1.wav and 2.wav are both 'a'"
    )


def test_members_are_named_with_their_tars() -> None:
    same = [Recording("a", Leaf("a.wav", 1, "", f"{n}.tar", 512)) for n in range(2)]
    assert "a.wav in 0.tar and a.wav in 1.tar are both 'a'" in problem(same)
