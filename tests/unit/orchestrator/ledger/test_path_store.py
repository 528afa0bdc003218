"""What a folder of a file system does that a bucket does not; the rest is in test_storage."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import AlreadyExistsError
from orchestrator.ledger.path_store import TEMPORARY, PathStore


def test_a_folder_that_is_left_empty_goes_with_its_last_object(tmp_path: Path) -> None:
    store = PathStore(tmp_path)
    store.create("a/b/c", b"1")
    store.delete("a/b/c")
    assert list(tmp_path.iterdir()) == []
    store.delete("a/b/c")


def test_a_failed_creation_leaves_no_temporary_file(tmp_path: Path) -> None:
    store = PathStore(tmp_path)
    store.create("a", b"1")
    with pytest.raises(AlreadyExistsError):
        store.upload(tmp_path / "a", "a", lambda: None)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_writer_left_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY}01").write_bytes(b"half")
    store = PathStore(tmp_path)
    assert (store.list(""), store.children("")) == ({}, set())
