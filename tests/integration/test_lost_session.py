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
from tests.ray_head import RayHead
from tests.training import wait_for

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


WAIT = """
import os, time
from jobs.ray_session import session
with session(os.environ["RAY_ADDRESS"], num_cpus=1):
    print("joined", flush=True)
    time.sleep(600)
"""


def test_who_has_joined_a_head_that_is_started_anew_ends(tmp_path: Path) -> None:
    """Ray itself leaves it waiting for what the new head knows nothing of."""
    head, log = RayHead(tmp_path / "ray", num_cpus=1), tmp_path / "log"
    head.start()
    try:
        with log.open("wb") as output:
            env = {**head.env_of_nodes(), **CODE_ENV, "RAY_ADDRESS": head.address}
            waits = subprocess.Popen(
                [sys.executable, "-c", WAIT], env=env, stdout=output, stderr=output
            )
        try:
            wait_for(lambda: "joined" in log.read_text(), "its session")
            head.kill()
            head.start()
            assert waits.wait(60) == 1
        finally:
            waits.kill()
            waits.wait()
    finally:
        head.stop()
