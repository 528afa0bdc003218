"""The supervisor of one stage inside its job."""

from __future__ import annotations

import argparse
import signal

from orchestrator.backends.slurm_allocation import Allocation
from orchestrator.control.slurm.stage_job import WARNINGS, supervise
from tests.unit.orchestrator.control.slurm.scene import Scene


def test_a_warning_that_came_early_is_heard(scene: Scene) -> None:
    here = Allocation(job_id="3", restarts=0, node_index=0, node="n1", leader_address="127.0.0.1")
    options = argparse.Namespace(instance=scene.id("pack"), walltime_min=60)
    before = {number: signal.getsignal(number) for number in WARNINGS}
    try:
        state = supervise(scene.store, scene.run, here, options, [signal.SIGTERM])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert state == "left"
    assert scene.run.attempts(scene.id("pack")) == ()
