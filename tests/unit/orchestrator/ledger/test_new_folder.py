"""A folder that is there whole or not at all."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from orchestrator.errors import RequestError
from orchestrator.ledger.new_folder import new_folder


def test_it_appears_when_it_is_full(tmp_path: Path) -> None:
    to = tmp_path / "a" / "made"
    with new_folder(to, "--to") as folder:
        (folder / "file").write_text("x")
        assert not to.exists()
    assert (to / "file").read_text() == "x"
    assert [path.name for path in to.parent.iterdir()] == ["made"]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "made", "--to") as folder:
        (folder / "file").write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "full", "link"])
def test_what_is_there_stays(tmp_path: Path, kind: str) -> None:
    to = tmp_path / "made"
    if kind == "file":
        to.write_text("mine")
    elif kind == "full":
        to.mkdir()
        (to / "file").touch()
    else:
        to.symlink_to("nowhere")
    with (
        pytest.raises(RequestError, match=r"--to: .*made is there already"),
        new_folder(to, "--to"),
    ):
        pass


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with new_folder(tmp_path / "made", "--to") as folder:
        (folder / "file").touch()
    assert (tmp_path / "made" / "file").exists()


def test_what_a_killed_maker_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    names = (".made.in-the-making-aaaaaaaa", ".made.in-the-making-bbbbbbbb", ".made-mine")
    old, new, mine = (tmp_path / name for name in names)
    for left in (old, new, mine):
        left.mkdir()
        (left / "link").symlink_to("nowhere")
    for left in (old, mine):
        os.utime(left / "link", (time.time() - 7200,) * 2, follow_symlinks=False)
        os.utime(left, (time.time() - 7200,) * 2)
    with new_folder(tmp_path / "made", "--to"):
        pass
    assert [left.exists() for left in (old, new, mine)] == [False, True, True]
