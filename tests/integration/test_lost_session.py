"""A real Ray session of which a daemon is killed before anybody has joined it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from orchestrator.backends.ray_session import RaySession
from orchestrator.errors import Cause

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent
CODE_ENV = {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
TIMEOUT_S = 300
"""Left to itself Ray tries for 820 s."""
JOIN = """
import os
from jobs.ray_session import session
from orchestrator.errors import RunFailedError
try:
    with session(os.environ["RAY_ADDRESS"], num_cpus=1):
        pass
except RunFailedError as error:
    print(error.cause)
"""


def test_who_joins_a_session_that_has_gone_does_not_wait_for_ever(tmp_path: Path) -> None:
    session = RaySession(run=str(tmp_path), num_cpus=1, log=tmp_path / "ray.log", code_env=CODE_ENV)
    try:
        session.wait_ready()
        daemons = psutil.Process(session._process.pid).children()
        (head,) = (p for p in daemons if p.name() == "gcs_server")
        head.kill()
        joined = subprocess.run(
            [sys.executable, "-c", JOIN],
            env={**os.environ, **CODE_ENV, **session.env},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
    finally:
        session.stop()
    assert joined.stdout.strip() == Cause.RAY_LOST
