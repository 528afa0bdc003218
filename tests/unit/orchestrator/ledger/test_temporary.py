"""Folders of this machine that are one user's alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import RequestError
from orchestrator.ledger.temporary import own_temporary_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_nobody_else_can_put_anything_into_it(tmp_path: Path) -> None:
    folder = own_temporary_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    (tmp_path / "theirs").mkdir()
    folder.symlink_to(tmp_path / "theirs")
    with pytest.raises(RequestError, match=r"belongs to somebody else; set TMPDIR"):
        own_temporary_folder()
