"""A process that forks ranks which are some Python code."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.training.forked_rank import ForkedRank, fork_rank

SCRIPT = """\
import json, os, sys
from jobs.training.standby import Standby
standby = Standby(sys.argv[1])
standby.import_first(("json",))
request = standby.serve()
request.become()
exec(json.loads(request.config)["code"])
"""


class Running:
    """A standby whose ranks are some Python code."""

    def __init__(self) -> None:
        self.address = secrets.token_hex(8)
        self.process = subprocess.Popen([sys.executable, "-c", SCRIPT, self.address])

    def ask(
        self, code: str, *, device: str = "", task: str = "json", **env: str
    ) -> ForkedRank | None:
        config = json.dumps({"code": code, "device": device, "task": f"{task}:Task"})
        return fork_rank(config, {**os.environ, **env}, self.address)

    def fork(self, code: str, **env: str) -> ForkedRank:
        rank = self.ask(code, **env)
        assert rank
        return rank


@pytest.fixture(scope="module")
def standby() -> Iterator[Running]:
    running = Running()
    yield running
    running.process.kill()
    running.process.wait()


def await_true(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def written(path: Path) -> str:
    await_true(path.exists)
    await_true(path.read_text)
    return path.read_text()
