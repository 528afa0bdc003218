"""Every row of ``benchmarks.gpu``, tiny on the CPU, where nothing but torch and transformers is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.__main__ import TOTAL_S
from benchmarks.gpu.figures import Setting
from benchmarks.gpu.rows import ROWS, Outcome, run

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.slow
NOT_THERE = (
    *("ray", "deepspeed", "soundfile", "torchaudio", "boto3", "submitit", "pydantic", "obstore"),
    *("rich", "jinja2", "matplotlib", "psutil", "pyarrow", "av", "accelerate", "tensorboardX"),
    *("xdist", "pytest_cov", "prometheus_client"),
)
"""Packages that a bare machine need not have."""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of processes that can import none of these."""
    folder = tmp_path_factory.mktemp("bare")
    lines = [f"sys.modules[{name!r}] = None" for name in NOT_THERE]
    (folder / "sitecustomize.py").write_text("\n".join(["import sys", *lines]))
    return os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def tier(*options: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--device", "cpu", *options]
    return subprocess.run(
        argv, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )


def test_every_row_runs_on_a_bare_machine(bare: dict[str, str], tmp_path: Path) -> None:
    done = tier("--json", str(tmp_path / "all.json"), environment=bare)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads((tmp_path / "all.json").read_text())
    assert report["skipped"] == {"deepspeed": "no deepspeed"}
    assert "deepspeed: skipped: no deepspeed" in done.stdout
    assert report["device"] == "cpu"
    assert report["tiny"]
    found = {figure["row"] for figure in report["figures"]}
    assert found == {"units", "encoder", "k-means", "memory", "checkpoint", "training step"}
    unmeasured = {f["case"] for f in report["figures"] if f["value"] is None}
    assert "tf32, batches" in unmeasured
    assert all("graphs" in case or "tf32" in case or "window" in case for case in unmeasured)
    (batches,) = (f for f in report["figures"] if f["case"] == "fp32, batches")
    assert batches["note"].endswith(", 0 of them no ties")
    (rounded,) = (f for f in report["figures"] if f["case"] == "bf16, batches")
    assert 0 < rounded["value"] < 10  # the row can tell


def test_the_tests_of_the_tier_run_on_a_bare_machine(bare: dict[str, str]) -> None:
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"]
    argv += ["-k", "waves_arrive_whole"]
    environment = bare | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        argv, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_a_row_that_fails_is_a_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    """The rest: a step in the training runtime's own engine, where DeepSpeed is."""
    pytest.importorskip("deepspeed")
    pytest.importorskip("pydantic")
    missing = str(tmp_path / "missing.npz")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = tier("--rows", "units", "deepspeed", "--audio", missing, environment=environment)
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "failed" in line]
    assert line.startswith("units: failed: FileNotFoundError: ")
    assert "OPT-125M, checkpoint on disk" in done.stdout


def test_a_row_that_takes_too_long_is_ended() -> None:
    late = run(ROWS[0], Setting(device="cpu", is_tiny=True), limit_s=0.01)
    assert late == Outcome("units", [], failed="not over after 0.01 s")


def test_the_rows_end_within_the_time_of_the_tier() -> None:
    assert TOTAL_S + 100 < 9 * 60
    assert max(row.limit_s for row in ROWS) < TOTAL_S
