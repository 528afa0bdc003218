"""Slurm as sites run it, for `make drill`: the smoke recipe on clusters that tell or allow little.

Not collected by `make test`; run by its path: ``pytest tests/slurm/site_runs.py``, one site with
``-k forgets``. A site is what its cluster is started with, and what its users write into their
cluster files; every site must bring a run to the same bytes, through a cancellation that is resumed
at once and through a preemption.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger.status import RunState
from tests.slurm.cluster import SlurmCluster, missing, running
from tests.slurm.rig import SlurmSmoke, wait_for

_REWRITE = """\
  {options}.comment = "billed to speech | 7\\n12|RUNNING|node1|None|/x/script.sh|second line"
  return slurm.SUCCESS
end
"""
JOB_SUBMIT = (
    f"function slurm_job_submit(desc, parts, uid)\n{_REWRITE.format(options='desc')}"
    "function slurm_job_modify(desc, job, parts, uid) return slurm.SUCCESS end\n"
    "return slurm.SUCCESS\n"
)
CLI_FILTER = (
    "function slurm_cli_setup_defaults(options, early) return slurm.SUCCESS end\n"
    f"function slurm_cli_pre_submit(options, offset)\n{_REWRITE.format(options='options')}"
    "function slurm_cli_post_submit(offset, job, step) return slurm.SUCCESS end\n"
)


@dataclass(frozen=True)
class Site:
    """How a site is."""

    cluster: Mapping[str, Any]
    """Options of `SlurmCluster.start`."""
    file: Mapping[str, Any] = field(default_factory=dict)
    """Sections of the users' cluster files."""


SITES = {
    "forgets": Site({"has_books": False, "settings": {"MinJobAge": "10"}}),
    "rewrites": Site({"scripts": {"JobSubmitPlugins": JOB_SUBMIT, "CliFilterPlugins": CLI_FILTER}}),
}


@pytest.fixture(scope="module", params=list(SITES))
def site(request: pytest.FixtureRequest) -> Site:
    """One of the sites after the other."""
    return SITES[request.param]


@pytest.fixture(scope="module")
def slurm(site: Site) -> Iterator[SlurmCluster]:
    """Its cluster."""
    if absent := missing():
        pytest.skip(f"{', '.join(absent)} missing; ./apt-packages.sh")
    with running(**site.cluster) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def fingerprints() -> list[dict[str, str]]:
    """What the sites before this one have made."""
    return []


def test_a_run_comes_to_its_end(
    site: Site,
    slurm: SlurmCluster,
    fingerprints: list[dict[str, str]],
    material: Path,
    tmp_path: Path,
) -> None:
    smoke = SlurmSmoke.on(slurm, tmp_path / "run", material, **site.file)
    name = smoke.submit()
    wait_for(lambda: smoke.attempts(name, "corpus"), "the first attempt")
    smoke.orchestrator("cancel", name)
    wait_for(lambda: not slurm.queue(), "the last job to be cleared away", timeout_s=30.0)
    assert smoke.status(name)["state"] == RunState.CANCELLED
    resumed = smoke.orchestrator("resume", name)
    assert "jobs submitted" in resumed.stderr
    smoke.preempt_training(slurm, name)
    assert smoke.await_end(name) == RunState.SUCCEEDED, smoke.jobs_output(name)
    assert smoke.causes(name, "train") == ["preempted", ""]
    figures = smoke.run(name).storage.read_bytes("metrics.openmetrics").decode()
    assert 'state="succeeded"} 1.0' in figures
    fingerprints.append(smoke.fingerprint())
    assert fingerprints[0] == fingerprints[-1]


def test_a_cancelled_run_stays_cancelled_when_nobody_remembers_it(
    site: Site, slurm: SlurmCluster, material: Path, tmp_path: Path
) -> None:
    """Jobs that wait, and one of which sbatch lost the answer."""
    later = {"extra": {"begin": "now+1hour"}}
    slurm_section = {**SlurmSmoke.sections(slurm)["slurm"], **site.file.get("slurm", {}), **later}
    smoke = SlurmSmoke.on(
        slurm, tmp_path / "run", material, **{**site.file, "slurm": slurm_section}
    )
    name = smoke.submit()
    (folder,) = (smoke.folder / "store" / "runs" / name / "submissions").iterdir()
    (folder / "whole.json").unlink()
    (lost,) = folder.glob("pack-*")
    (lost / "job.json").unlink()
    before = {row.id for row in slurm.queue()}
    assert "already running" in smoke.orchestrator("resume", name).stderr
    assert {row.id for row in slurm.queue()} == before, "nothing was submitted twice"
    smoke.orchestrator("cancel", name)
    wait_for(lambda: not slurm.queue(), "the last job to be cleared away", timeout_s=30.0)
    wait_for(lambda: not known(slurm, before), "all of it to be forgotten", timeout_s=90.0)
    assert smoke.status(name)["state"] == RunState.CANCELLED
    assert "jobs submitted" in smoke.orchestrator("resume", name).stderr
    smoke.orchestrator("cancel", name)


def test_a_controller_that_is_away_is_said_soon(
    site: Site, slurm: SlurmCluster, material: Path, tmp_path: Path
) -> None:
    smoke = SlurmSmoke.on(slurm, tmp_path / "run", material, **site.file)
    name = smoke.submit()
    slurm.stop_controller()
    began = time.monotonic()
    shown = smoke.orchestrator("status", name, check=False)
    took_s = time.monotonic() - began
    slurm.start_controller()
    smoke.orchestrator("cancel", name)
    assert (shown.returncode, shown.stderr.count("\n")) == (3, 1), shown.stderr
    assert "shown is what was last known" in shown.stderr
    assert took_s < 6.0, "3 s of patience, and the start of Python on a busy machine"


def known(slurm: SlurmCluster, job_ids: set[str]) -> bool:
    """Whether the controller still knows any of some jobs; the books, where there are any, do."""
    if slurm.has_books:
        return False
    words = ("squeue", "--noheader", "--states=all", "--format=%i")
    answer = subprocess.run(words, env=slurm.env, capture_output=True, text=True, check=False)
    return bool(job_ids & set(answer.stdout.split()))
