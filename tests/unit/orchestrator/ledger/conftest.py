"""Stores to test with: a folder, and an object store in memory."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from orchestrator.ledger.storage import Storage


@pytest.fixture(params=["path", "object store"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "path":
        yield Storage(str(tmp_path / "store"))
        return
    bucket = f"memory://{secrets.token_hex(4)}"
    yield Storage(f"{bucket}/store")
    memory = fsspec.filesystem("memory")
    if memory.exists(bucket):
        memory.rm(bucket, recursive=True)
