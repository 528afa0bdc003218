"""Sites that do not take every request: whole runs on each, for `make drill`; minutes apiece.

Not collected by `make test`; run by its path: ``pytest tests/slurm/limited_sites.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import SlurmCluster, running
from tests.slurm.rig import RESOURCES, SlurmSmoke, wait_for

_NO_MEMORY = """\
function slurm_job_submit(job_desc, part_list, submit_uid)
  if job_desc.min_mem_per_node ~= nil or job_desc.min_mem_per_cpu ~= nil then
    slurm.log_user("memory is not asked for at this site")
    return slurm.ERROR
  end
  return slurm.SUCCESS
end
function slurm_job_modify(job_desc, job_rec, part_list, modify_uid)
  return slurm.SUCCESS
end
return slurm.SUCCESS
"""


@dataclass(frozen=True)
class Site:
    """What a site does not allow, and what its users say in their cluster file."""

    options: dict[str, Any]
    """Of the cluster."""
    slurm: dict[str, Any] = field(default_factory=dict)
    """Of the cluster file."""
    accounting: tuple[str, ...] = ()
    """What its administrator has told the books, for `sacctmgr`."""
    finds: str = ""
    """What `doctor` says of it."""


SITES = {
    "no memory": Site(
        options={
            "settings": {"SelectTypeParameters": "CR_Core"},
            "partitions": "",
            "scripts": {"JobSubmitPlugins": _NO_MEMORY},
        },
        slurm={"memory": "none"},
        finds="the site takes it with memory: none",
    ),
    "few places": Site(
        options={
            "max_array": 10,
            "settings": {"AccountingStorageEnforce": "associations,limits,qos"},
        },
        accounting=("modify", "qos", "normal", "set", "MaxSubmitJobsPerUser=20"),
        finds="9 tasks; larger arrays are split",
    ),
}


@pytest.fixture(scope="module", params=SITES.values(), ids=list(SITES))
def site(request: pytest.FixtureRequest) -> Site:
    chosen: Site = request.param
    return chosen


@pytest.fixture(scope="module")
def slurm(site: Site) -> Iterator[SlurmCluster]:
    """A cluster as the site has it."""
    with running(**site.options) as cluster:
        if site.accounting:
            cluster.run("sacctmgr", "-i", *site.accounting)
        yield cluster


def smoke_at(slurm: SlurmCluster, site: Site, folder: Path, material: Path) -> SlurmSmoke:
    """A store whose cluster file asks for 30 workers, of which four have a place."""
    resources = {**RESOURCES, "tokenize": {"mem_gb": 1, "nodes": 30, "max_workers": 30}}
    own = {"partition": "low", "workers": {"cpus": slurm.cpus}, "idle_timeout_s": 20}
    return SlurmSmoke.on(slurm, folder, material, resources=resources, slurm={**own, **site.slurm})


def test_doctor_finds_what_the_site_wants(
    slurm: SlurmCluster, site: Site, material: Path, tmp_path: Path
) -> None:
    smoke = smoke_at(slurm, site, tmp_path / "run", material)
    smoke.change(slurm={"partition": "low"})
    said = smoke.orchestrator("doctor", check=False).stdout
    assert site.finds in said
    assert "Invalid job array specification" not in said


def test_a_run_to_its_end_through_a_preemption_and_a_cancel(
    slurm: SlurmCluster, site: Site, material: Path, tmp_path: Path
) -> None:
    smoke = smoke_at(slurm, site, tmp_path / "run", material)
    name = smoke.submit()
    smoke.preempt_training(slurm, name)
    assert smoke.await_end(name) == "succeeded", smoke.jobs_output(name)
    assert smoke.causes(name, "train") == ["preempted", ""]
    whole = smoke.fingerprint()
    smoke.forget_artifacts("train", "perplexity", "continuations")
    again = smoke.submit("--name", "again")
    smoke.await_step(again, 60)
    smoke.orchestrator("cancel", again)
    smoke.orchestrator("resume", again)
    assert smoke.await_end(again) == "succeeded", smoke.jobs_output(again)
    assert smoke.fingerprint() == whole
    wait_for(lambda: slurm.queue() == [], "an empty queue")
