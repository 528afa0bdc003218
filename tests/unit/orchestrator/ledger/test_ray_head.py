"""Where a Ray head is, for its owner's workers alone."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from orchestrator.errors import RequestError
from orchestrator.ledger import ray_head
from orchestrator.ledger.ray_head import RayHead
from orchestrator.ledger.storage import Storage


def test_a_heads_token_is_for_its_owners_eyes(tmp_path: Path) -> None:
    stage = Storage(str(tmp_path / "stage"))
    assert ray_head.read(stage) is None
    for address in ("10.0.0.1:6379", "10.0.0.2:6379"):
        said = RayHead(address=address, token="secret")
        ray_head.publish(stage, said)
        assert ray_head.read(stage) == said
    (path,) = (tmp_path / "stage").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    ray_head.withdraw(stage)
    ray_head.withdraw(stage)
    assert ray_head.read(stage) is None


def test_an_object_store_keeps_no_tokens() -> None:
    with pytest.raises(RequestError, match="a store that is a path"):
        ray_head.publish(Storage("memory://x"), RayHead(address="a", token="b"))
