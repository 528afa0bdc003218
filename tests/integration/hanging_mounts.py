"""Drill: no verb waits for a store that does not answer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from orchestrator.errors import ExitCode
from orchestrator.ledger.stuck_files import ANSWER_WITHIN_S
from tests.hanging_mount import can_mount, hanging_mount
from tests.unit.source import ROOT

needs_mount = pytest.mark.skipif(not can_mount(), reason="needs root and /dev/fuse")
RECIPE = ROOT / "recipes" / "smoke.yaml"


def require_unreachable(folder: Path, words: list[str]) -> None:
    """A verb on a store that does not answer ends within its time and says which folder it is."""
    with hanging_mount(folder / "mount", "file", b"") as mount:
        cluster = {"backend": "local", "store": str(mount.folder / "store"), "cpus": 1}
        (folder / "cluster.yaml").write_text(yaml.safe_dump(cluster))
        mount.hangs = True
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli.main"]
            + [word.format(mount=mount.folder) for word in words]
            + ["--cluster", str(folder / "cluster.yaml")],
            env={**os.environ, "PYTHONPATH": str(ROOT), ANSWER_WITHIN_S: "1"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == ExitCode.UNREACHABLE, done.stderr
        last = done.stderr.splitlines()[-1]
        assert str(mount.folder) in last
        assert "does not answer (waited for 1 s); see whether its disk or mount is there" in last
        assert "Traceback" not in done.stderr
        assert time.monotonic() - began < 30


@needs_mount
@pytest.mark.parametrize(
    "words",
    [
        ["plan", str(RECIPE)],
        ["submit", str(RECIPE)],
        ["status"],
        ["status", "some-run"],
        ["status", "{mount}/store/runs/some-run"],
        ["resume", "some-run"],
        ["cancel", "some-run"],
        ["logs", "some-run"],
        ["verify", "some-run"],
        ["report", "some-run"],
        ["chaos", "some-run", "--kill", "rank"],
        ["doctor"],
    ],
    ids=lambda words: "-".join(Path(word).name for word in words),
)
def test_a_verb_does_not_wait_for_a_store_that_does_not_answer(
    tmp_path: Path, words: list[str]
) -> None:
    require_unreachable(tmp_path, words)
