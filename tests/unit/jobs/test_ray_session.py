"""Joining a Ray session that is not there."""

from __future__ import annotations

import pytest

from jobs.ray_session import session
from orchestrator.errors import Cause, RunFailedError, cause_of


def test_a_session_that_cannot_be_joined_went_away() -> None:
    with (
        pytest.raises(RunFailedError, match=r"^ray: the session at nowhere went away") as raised,
        session("nowhere", num_cpus=1),
    ):
        pass
    assert cause_of(raised.value) is Cause.RAY_LOST
