"""A real Ray session of two CPUs for tests, as a local run has it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.backends.ray_session import RaySession

ROOT = Path(__file__).parent.parent


@contextmanager
def two_cpus(folder: Path) -> Iterator[str]:
    """The session's address; its token is in the environment meanwhile."""
    ray = RaySession(num_cpus=2, log=folder / "ray.log", code_env={"PYTHONPATH": str(ROOT)})
    try:
        ray.wait_ready()
        with pytest.MonkeyPatch.context() as environment:
            for name, value in ray.env.items():
                environment.setitem(os.environ, name, value)
            yield ray.env["RAY_ADDRESS"]
    finally:
        ray.stop()
