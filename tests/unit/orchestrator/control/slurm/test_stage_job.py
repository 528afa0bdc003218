"""The supervisor of one stage inside its job."""

from __future__ import annotations

import argparse
import signal

import pytest

from orchestrator.backends.fake import FakeBackend
from orchestrator.backends.slurm_allocation import Allocation
from orchestrator.control.slurm.other_runs import OtherRuns
from orchestrator.control.slurm.stage_job import (
    WARNED,
    WARNINGS,
    _heed_warnings,
    _previous_end,
    supervise,
)
from orchestrator.control.supervise import Supervisor
from orchestrator.ledger import lease as leases
from orchestrator.ledger.storage import to_json
from tests.unit.orchestrator.control.slurm.scene import STAGES, Scene
from tests.unit.orchestrator.recipes import cluster


def test_a_warning_that_came_early_is_heard(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    here = Allocation(job_id="3", restarts=0, node_index=0, node="n1", leader_address="127.0.0.1")
    options = argparse.Namespace(instance=scene.id("pack"), walltime_min=60)
    others = OtherRuns(scene.store, scene.run, scene.run.plan().group(scene.id("pack")))
    before = {number: signal.getsignal(number) for number in WARNINGS}
    try:
        state = supervise(scene.store, scene.run, here, options, [signal.SIGTERM], others)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert state == "left"
    assert "warned by SIGTERM" in caplog.text
    assert scene.run.attempts(scene.id("pack")) == ()


def test_a_handler_stops_the_supervisor_and_writes_nothing_itself(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """It may have interrupted whoever holds the log."""
    caplog.set_level("INFO")
    supervisor, signals = Supervisor(scene.store, scene.run, FakeBackend()), list[int]()
    before = {number: signal.getsignal(number) for number in WARNINGS}
    try:
        _heed_warnings(supervisor, 3600.0, signals)
        signal.raise_signal(signal.SIGUSR1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert supervisor.is_stopped
    assert (signals, caplog.text) == ([signal.SIGUSR1], "")


def test_a_job_does_not_hold_its_nodes_while_another_run_does_its_work(scene: Scene) -> None:
    scene.publish(*STAGES[:4])
    pack = scene.run.plan().instance(scene.id("pack"))
    here = Allocation(job_id="3", restarts=0, node_index=0, node="n1", leader_address="127.0.0.1")
    options = argparse.Namespace(instance=pack.id, walltime_min=60)
    quick = cluster(scene.store.storage.url, backend="slurm", retry={"heartbeat_timeout_s": 0.5})
    scene.run.move(quick)
    others = OtherRuns(scene.store, scene.run, (pack,))
    storage = scene.store.artifact(pack.stage, pack.key).storage
    before = {number: signal.getsignal(number) for number in WARNINGS}
    try:
        with leases.held(storage, holder=f"other/{pack.id}/0001", timeout_s=60):
            state = supervise(scene.store, scene.run, here, options, [], others)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (state, others.are_waited_for) == ("left", True)
    assert scene.run.attempts(pack.id) == (), "nothing was started for it"


@pytest.mark.parametrize(("warned", "cause"), [("walltime", "walltime"), (None, "node_lost")])
def test_without_books_the_warning_tells_how_the_start_before_ended(
    scene: Scene, warned: str | None, cause: str
) -> None:
    scene.answers.say("sacct", "Slurm accounting storage is disabled\n", code=1)
    here = Allocation(job_id="3", restarts=1, node_index=0, node="n1", leader_address="127.0.0.1")
    options = argparse.Namespace(instance=scene.id("pack"))
    if warned:
        before = scene.run.allocation(options.instance, "3-0")
        before.replace(WARNED, to_json({"cause": warned}))
    status, _ = _previous_end(scene.run, options, here)
    assert status.cause == cause
