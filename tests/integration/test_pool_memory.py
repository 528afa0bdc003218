"""The pool on a node whose memory a neighbour takes."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray

from jobs.speech.pool import Pool
from jobs.training.ray_train import session
from orchestrator.spec.cluster import Resources

pytestmark = pytest.mark.slow
GIB = 1024**3
HOG = "import sys, time; hog = b'x' * int(sys.argv[1]); time.sleep(600)"


class Slow:
    """Takes a while over each item, in which a monitor can find it."""

    def __call__(self, payload: Path) -> int:
        deadline = time.monotonic() + 30
        while payload.exists() and time.monotonic() < deadline:  # the neighbour is still there
            time.sleep(0.1)
        return 1


def test_a_worker_that_dies_of_a_neighbours_memory_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory = psutil.virtual_memory()
    if memory.available < 12 * GIB:
        pytest.skip("needs 12 GiB of memory")
    limit = (memory.total - memory.available + 4 * GIB) / memory.total
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{limit:.3f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    there = tmp_path / "neighbour"
    with session("", num_cpus=2), Pool(Slow, size=Resources(max_workers=2)) as pool:
        assert dict(pool.run(range(2), lambda _: there)) == {0: 1, 1: 1}  # both have started
        there.touch()
        hog = subprocess.Popen([sys.executable, "-c", HOG, str(6 * GIB)])

        def leave_after_a_death() -> None:
            if pool.deaths_in_row and hog.poll() is None:
                hog.kill()
                there.unlink(missing_ok=True)

        with caplog.at_level(logging.WARNING):
            results = dict(pool.run(range(6), lambda _: there, tick=leave_after_a_death))
        hog.wait()
    assert results == dict.fromkeys(range(6), 1)
    assert "ran low on memory" in caplog.text
    assert "most by process" in caplog.text  # the neighbour, where no other has more
