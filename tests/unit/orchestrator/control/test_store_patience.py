"""How long a store that is away is waited for, and who is told."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from orchestrator.control.store_patience import StorePatience, waited_for

FULL = OSError(errno.ENOSPC, "No space left on device", "/store/x")


def test_a_store_is_waited_for_and_this_machine_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    now = [0.0]
    patience = StorePatience("/store/s", for_s=10, pause_s=0, clock=lambda: now[0])
    assert waited_for("/store/s") == ""
    for now[0] in (0.0, 9.0):
        assert not patience.is_over(FULL)
        assert waited_for("/store/s") == "/store/x: No space left on device"
    patience.renew()
    assert waited_for("/store/s") == ""
    now[0] = 11.0
    assert not patience.is_over(FULL), "it was back meanwhile"
    now[0] = 21.0
    assert patience.is_over(FULL)
    assert waited_for("/store/s") == ""
