"""Stores to test with: a folder, and an object store in memory."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from orchestrator.ledger.storage import Storage


@pytest.fixture(params=["path", "object store"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "path":
        return Storage(str(tmp_path / "store"))
    return Storage(f"memory://{secrets.token_hex(4)}/store")
