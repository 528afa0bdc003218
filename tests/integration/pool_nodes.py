"""A pool over several nodes, one of which is broken: several raylets on one machine, for drills.

Not collected by `make test`; run by its path: ``pytest tests/integration/pool_nodes.py``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from jobs.ray_nodes import dead_nodes, draining_nodes
from jobs.speech.pool import Pool
from orchestrator.backends.ray_session import LOOPBACK, RayNode, RaySession
from orchestrator.control.ray.spot_watcher import RayNode as Drained
from orchestrator.ledger.attempt import NODE_NAME
from orchestrator.spec.cluster import Resources
from tests.training import wait_for

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent
CODE_ENV = {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
BROKEN, SOUND = "n1", "n2"


class FailsOnANode:
    """Fails in a way where its node is the broken one."""

    def __init__(self, how: str) -> None:
        self._how, self._is_broken = how, os.environ[NODE_NAME] == BROKEN
        if how == "start" and self._is_broken:
            raise RuntimeError("Found no NVIDIA driver on your system")

    def __call__(self, payload: int) -> int:
        if self._is_broken and self._how == "device":
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
        if self._is_broken and self._how == "death":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.1)  # the broken node's actors need time to come back
        return payload * payload


def test_a_node_on_which_workers_die_alone_is_named(tmp_path: Path) -> None:
    """Whatever the way; the items are done elsewhere, and none of them is blamed."""
    said = driven(tmp_path, "drive()")
    assert said == [f"{how} ['{BROKEN}']" for how in HOWS]


def test_a_node_that_is_about_to_go_gets_no_item_more(tmp_path: Path) -> None:
    """What its worker has at the notice is finished; another takes its place elsewhere."""
    (said,) = driven(tmp_path, "drive_drained()")
    nodes = set(json.loads(said))
    assert nodes == {SOUND}


def driven(tmp_path: Path, call: str) -> list[str]:
    """The lists that a call of this module prints, on a session of two nodes."""
    session = RaySession(run=str(tmp_path), num_cpus=0, log=tmp_path / "ray.log", code_env=CODE_ENV)
    nodes = []
    try:
        session.wait_ready()
        for name in (BROKEN, SOUND):
            env = {**CODE_ENV, NODE_NAME: name}
            where = {"address": LOOPBACK, "num_cpus": 1, "num_gpus": 0}
            log = tmp_path / f"{name}.log"
            nodes.append(RayNode(session.head, log=log, code_env=env, **where))
            wait_for(lambda log=log: b"Ray runtime started" in log.read_bytes(), f"node {name}")
        code = f"from {__name__} import *; {call}"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **CODE_ENV, **session.env},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        for node in nodes:
            node.stop()
        session.stop()
    assert done.returncode == 0, done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if line.endswith("]")]  # Ray warns there too


HOWS = ("death", "device", "start")


def drive() -> None:
    """The driver: one pool for each way of failing; which nodes it named."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    for how in HOWS:
        named: list[str] = []
        size = Resources(max_workers=2, min_workers=2)
        with Pool(FailsOnANode, how, size=size, on_failing_node=named.append) as pool:
            deadline = time.monotonic() + 120
            while not named and time.monotonic() < deadline:
                assert dict(pool.run(range(6), lambda item: item)) == {n: n * n for n in range(6)}
        print(how, sorted(set(named)))


class WhereItIs:
    """Says on which node an item was done, and when it was begun."""

    def __call__(self, payload: float) -> tuple[str, float]:
        began = time.time()
        time.sleep(payload)
        return os.environ[NODE_NAME], began


def drive_drained() -> None:
    """The driver: a node is drained in the middle; where items were begun from then on."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    size = Resources(max_workers=2, min_workers=2)
    results: list[tuple[str, float]] = []
    drained_at = 0.0
    with Pool(WhereItIs, size=size) as pool:
        while len({node for _, (node, _) in pool.run(range(4), lambda _: 0.1)}) < 2:
            pass
        for _, result in pool.run(range(40), lambda _: 0.5):
            results.append(result)
            if len(results) == 4:
                names = pool._nodes_used._names
                broken = next(node_id for node_id, name in names.items() if name == BROKEN)
                assert Drained(os.environ["RAY_ADDRESS"], broken).drain(time.time() + 60)
                drained_at = time.time()
    assert broken in {*draining_nodes(), *dead_nodes()}
    assert pool.deaths_in_row == 0
    print(json.dumps([node for node, began in results if began > drained_at + 5]))
