"""What jobs of this machine find around them."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.control.local.supervisor import of_this_machine
from orchestrator.control.run_logs import RunLogs
from tests.unit.orchestrator.control.local.scene import Scene


def test_the_cluster_file_says_how_many_cores(tmp_path: Path) -> None:
    for given, expected in ((3, 3), (None, os.cpu_count())):
        run = Scene(tmp_path / str(given), cpus=given).run
        found = of_this_machine(run, run.storage, RunLogs(run))
        assert (found.num_cpus, found.standby is not None) == (expected, True)
