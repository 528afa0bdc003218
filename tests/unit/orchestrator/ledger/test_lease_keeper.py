"""Leases that are kept together, lost, and given back."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator.errors import LeaseHeldError
from orchestrator.ledger import lease as leases
from orchestrator.ledger.lease_keeper import LeaseKeeper
from orchestrator.ledger.storage import Storage

TIMEOUT_S = 60.0


def require_until(keeper: LeaseKeeper, deadline: float) -> None:
    while time.monotonic() < deadline:
        keeper.require()


def test_whoever_slept_and_was_replaced_learns_of_it(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    held = leases.acquire(folder, holder="r/moving", timeout_s=TIMEOUT_S)
    with LeaseKeeper(every_s=0.01) as keeper:
        keeper.take(held)
        keeper.require()
        leases.acquire(folder, holder="r/moving", timeout_s=TIMEOUT_S, over="r")
        with pytest.raises(LeaseHeldError, match="lease 1 was lost to 2"):
            require_until(keeper, time.monotonic() + 60)


def test_what_is_dropped_or_left_at_the_end_is_given_back(tmp_path: Path) -> None:
    first, second = Storage(str(tmp_path / "1")), Storage(str(tmp_path / "2"))
    with LeaseKeeper(every_s=60) as keeper:
        done = keeper.take(leases.acquire(first, holder="r/moving", timeout_s=TIMEOUT_S))
        keeper.take(leases.acquire(second, holder="r/moving", timeout_s=TIMEOUT_S))
        keeper.drop(done)
        assert leases.acquire(first, holder="other", timeout_s=TIMEOUT_S).number == 2
        with pytest.raises(LeaseHeldError):
            leases.acquire(second, holder="other", timeout_s=TIMEOUT_S)
    assert leases.acquire(second, holder="other", timeout_s=TIMEOUT_S).number == 2
