"""Whatever is wrong with a file is one line that names it and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import BackendError, CorruptError
from orchestrator.ledger.records import find_record, record_at, understood
from orchestrator.ledger.storage import Storage


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", "\0", "\udcff", '"x"'])
def test_what_is_no_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CorruptError, match=r"/a\.json: .+; (move it|remove it)$") as error:
        record_at(Storage(str(tmp_path)), "a.json", "move it")
    assert "\n" not in str(error.value)


def test_a_record_that_is_missing(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert find_record(storage, "a.json", "move it") is None
    with pytest.raises(FileNotFoundError, match="missing; move it") as error:
        record_at(storage, "a.json", "move it")
    assert error.value.filename == f"{tmp_path}/a.json"


def test_a_folder_in_place_of_a_record(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(CorruptError, match=r"a.json: cannot be understood .*; move it"):
        record_at(Storage(str(tmp_path)), "a.json", "move it")


def test_a_record_that_nobody_may_read() -> None:
    with pytest.raises(BackendError, match="x: permission denied; see who"), understood("x", "y"):
        raise PermissionError(13, "Permission denied", "x")


def test_a_store_that_is_away_keeps_its_own_words() -> None:
    with pytest.raises(ConnectionError, match="s3://b/x: away"), understood("x", "y"):
        raise ConnectionError("s3://b/x: away")
