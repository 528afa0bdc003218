"""What a cluster does to jobs: each time the run ends as if nothing had happened."""

from __future__ import annotations

import json

import pytest

from tests.slurm.cluster import SlurmCluster
from tests.slurm.rig import SlurmSmoke, saved_step, wait_for
from tests.smoke import kind_of


@pytest.mark.usefixtures("same_bytes")
def test_a_preempted_training_saves_goes_on_and_tells_its_people(
    slurm: SlurmCluster, smoke: SlurmSmoke
) -> None:
    told = smoke.folder / "told"
    told.mkdir()
    smoke.change(notify={"command": ["sh", "-c", f"cat > $(mktemp {told}/XXXXXX)"]})
    name = smoke.submit()
    lost_at = smoke.preempt_training(slurm, name)
    assert smoke.await_end(name) == "succeeded", smoke.jobs_output(name)
    assert smoke.causes(name, "train") == ["preempted", ""]
    first, second = smoke.attempts(name, "train")
    assert saved_step(second) == lost_at, "nothing was done twice: it was saved when it was warned"
    assert first.storage.read_bytes("rank-00000.log")
    assert smoke.status(name)["goodput"]["restart_s"] > 0
    notices = sorted((json.loads(p.read_text()) for p in told.iterdir()), key=_time_and_order)
    assert [n["event"] for n in notices] == [
        "started", "first_step", "interrupted", "back", "done",
    ]  # fmt: skip
    assert notices[2]["cause"] == "preempted"
    assert notices[2]["attempt"] == 1


def _time_and_order(notice: dict[str, str]) -> tuple[str, bool]:
    return notice["time"], notice["event"] == "back"  # which may come in the second of the end


@pytest.mark.usefixtures("same_bytes")
def test_where_preemption_cancels_the_sentinel_resumes(
    slurm: SlurmCluster, smoke: SlurmSmoke
) -> None:
    smoke.change(slurm={"partition": "cancel", "requeue": False, "head": {"partition": "high"}})
    name = smoke.submit()
    smoke.await_step(name, 60)
    first = smoke.job(name, "train")
    slurm.occupy(*slurm.nodes, seconds=3)
    wait_for(lambda: smoke.job(name, "train") != first, "another job")
    assert smoke.await_end(name) == "succeeded", smoke.jobs_output(name)
    assert smoke.causes(name, "train") == ["preempted", ""]


@pytest.mark.usefixtures("same_bytes")
def test_scancel_is_somebodys_will_until_resume(slurm: SlurmCluster, smoke: SlurmSmoke) -> None:
    name = smoke.submit()
    smoke.await_step(name, 60)
    slurm.run("scancel", smoke.job(name, "train"))
    assert smoke.await_end(name) == "cancelled"
    output = wait_for(
        lambda: text if "not resumed" in (text := smoke.jobs_output(name)) else "",
        "the sentinel's word",
    )
    assert "was cancelled with scancel" in output
    smoke.orchestrator("resume", name)
    assert smoke.await_end(name) == "succeeded", smoke.jobs_output(name)


@pytest.mark.usefixtures("same_bytes")
def test_cancel_saves_first_and_resume_goes_on(slurm: SlurmCluster, smoke: SlurmSmoke) -> None:
    name = smoke.submit()
    smoke.await_step(name, 60)
    smoke.orchestrator("cancel", name)
    assert smoke.status(name)["state"] == "cancelled"
    (first,) = smoke.attempts(name, "train")
    stopped_at = first.storage.read_json("live.json")["step"]
    smoke.orchestrator("resume", name)
    assert smoke.await_end(name) == "succeeded", smoke.jobs_output(name)
    assert smoke.causes(name, "train") == ["cancelled", ""]
    assert saved_step(smoke.attempts(name, "train")[1]) == stopped_at


@pytest.mark.usefixtures("same_bytes")
def test_edits_after_submit_change_nothing_and_daemons_may_restart(
    slurm: SlurmCluster, smoke: SlurmSmoke
) -> None:
    name = smoke.submit()
    smoke.await_step(name, 60)
    slurm.stop_books()
    slurm.stop_controller()
    slurm.start_controller()
    assert smoke.status(name)["state"] == "running"
    ranks = [p for p in slurm.job_processes() if kind_of(p) == "training rank"]
    code = str(smoke.run(name).storage.local_root / "code")
    assert {p.environ()["PYTHONPATH"] for p in ranks} == {code}
    slurm.start_books()
    assert smoke.await_end(name) == "succeeded", smoke.jobs_output(name)


@pytest.mark.usefixtures("same_bytes")
def test_a_run_whose_worker_and_later_its_training_is_preempted(
    slurm: SlurmCluster, smoke: SlurmSmoke
) -> None:
    smoke.forget_artifacts("tokenize", "pack")
    name = smoke.submit()
    workers = smoke.job(name, "tokenize", "workers")
    wait_for(lambda: smoke.attempts(name, "tokenize"), "the driver")
    elsewhere = wait_for(
        lambda: [r.nodes for r in slurm.queue() if r.id.startswith(workers) and r.nodes],
        "a worker",
    )[0]
    slurm.occupy(elsewhere, seconds=3)
    smoke.await_step(name, 60)
    assert smoke.causes(name, "tokenize") == [""]
    slurm.occupy(*slurm.nodes, seconds=3)
    assert smoke.await_end(name) == "succeeded", smoke.jobs_output(name)
    assert smoke.causes(name, "train") == ["preempted", ""]
    assert any("put back into the queue" in line for line in smoke.jobs_output(name).splitlines())
