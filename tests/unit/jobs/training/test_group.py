"""What a rank that is alone gets back; several are in tests/integration and tests/numerics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from jobs.training.group import RankGroup
from jobs.training.rank import RankInfo
from orchestrator.ledger.storage import Storage


@pytest.fixture
def alone() -> Iterator[RankGroup]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    info = RankInfo(rank=0, world_size=1, local_rank=0, local_world_size=1)
    yield RankGroup(info, dist.group.WORLD)
    dist.destroy_process_group()


def test_messages_of_one_rank(alone: RankGroup) -> None:
    alone.barrier()
    assert alone.leads
    assert alone.gather("a") == ["a"]
    assert alone.broadcast({"b": (1, None)}) == {"b": (1, None)}
    assert alone.sum(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]


def test_files_of_a_store_on_a_path_stay_where_they_are(alone: RankGroup, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"a")
    assert alone.fetch(Storage(str(tmp_path)), ["a.bin"], tmp_path / "cache") == [
        tmp_path / "a.bin"
    ]


def test_files_of_a_remote_store_are_brought_here(alone: RankGroup, tmp_path: Path) -> None:
    remote = Storage(f"memory://{tmp_path.name}")
    remote.create("a.bin", b"a")
    (path,) = alone.fetch(remote, ["a.bin"], tmp_path / "cache")
    assert path == tmp_path / "cache" / "a.bin"
    assert path.read_bytes() == b"a"
