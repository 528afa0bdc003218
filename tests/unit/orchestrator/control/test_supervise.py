"""The supervisor over a backend that plays a script: what it starts, and what it makes of ends."""

from __future__ import annotations

import errno
import itertools
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.base import Job, JobRef
from orchestrator.backends.fake import DONE, FakeBackend
from orchestrator.control.store_patience import StorePatience
from orchestrator.control.supervise import Supervisor, write_figures
from orchestrator.errors import BackendError, Cause, LeaseHeldError, cause_of
from orchestrator.ledger.attempt import AttemptFolder
from orchestrator.ledger.lease import Lease, Process
from orchestrator.ledger.moved import Moved, record_moved
from orchestrator.ledger.openmetrics import FILE
from orchestrator.ledger.run import STANDBY, RunFolder
from orchestrator.ledger.status import JobState, JobStatus, Observed
from orchestrator.ledger.store import Store
from orchestrator.plan.planner import Plan
from orchestrator.spec.recipe import Recipe
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe, swept

ALL = ["corpus", "encoder", "codebook", "tokenize", "pack", "train", "perplexity", "continuations"]
KILLED = JobStatus(state=JobState.FAILED, exit_code=-9, node="n1")
PREEMPTED = JobStatus(state=JobState.PREEMPTED, exit_code=-15, node="n1")
RUNNING = JobStatus(state=JobState.RUNNING, node="fake")
"""In a script: the job runs until it is cancelled."""


def failed(exit_code: int) -> JobStatus:
    return JobStatus(state=JobState.FAILED, exit_code=exit_code, node="n1")


class Scene:
    """A run in a store of its own, its jobs played by a script; done jobs leave their artifacts."""

    def __init__(self, folder: Path, what: Recipe | None = None, **settings: Any) -> None:
        self.recipe = what or recipe()
        self.store = Store.open(str(folder / "store"))
        self.run = RunFolder(self.store.run_storage("small"))
        self.plan: Plan = plan_of(self.recipe)
        where = cluster(str(folder / "store"), **settings)
        self.run.create(self.plan, self.recipe, where, {}, {})
        self.also: Callable[[Job, JobStatus], object] = lambda _job, _status: None
        self.backend = FakeBackend()

    def id(self, stage: str) -> str:
        return next(i.id for i in self.plan.instances if i.stage == stage)

    def supervisor(
        self, script: dict[str, Sequence[JobStatus]] | None = None, **how: Any
    ) -> Supervisor:
        by_id = {
            name if "-" in name else self.id(name): ends for name, ends in (script or {}).items()
        }
        self.backend = FakeBackend(by_id, self._effect)
        waits = {"tick_s": 0.01, "lease_wait_s": 0.2, "retry_delay_s": 0.01}
        backend = how.pop("backend", self.backend)
        return Supervisor(self.store, self.run, backend, **{**waits, **how})

    def publish(self, stage: str) -> None:
        for instance in self.plan.group(self.id(stage)):
            artifact = self.store.artifact(instance.stage, instance.key)
            artifact.publish(inputs=instance.inputs, facts={}, producer={})

    def publish_before(self, stage: str) -> None:
        for earlier in ALL[: ALL.index(stage)]:
            self.publish(earlier)

    def started(self) -> list[str]:
        return [job.name.split("-")[0] for job in self.backend.jobs]

    def ends(self, stage: str) -> list[tuple[str, str, str]]:
        attempts = self.run.attempts(self.id(stage))
        return [(e["state"], e["cause"], e["action"]) for a in attempts if (e := a.end)]

    def _effect(self, job: Job, status: JobStatus) -> None:
        self.also(job, status)
        if status == DONE:
            for instance in self.plan.group(job.name):
                artifact = self.store.artifact(instance.stage, instance.key)
                artifact.publish(inputs=instance.inputs, facts={}, producer={})


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_stages_run_in_the_order_of_the_data(scene: Scene) -> None:
    assert scene.supervisor().run() == "succeeded"
    assert sorted(scene.started()) == sorted(ALL)
    order = {stage: n for n, stage in enumerate(scene.started())}
    for instance in scene.plan.instances:
        assert all(order[need] < order[instance.stage] for need in instance.needs)
    assert all(scene.ends(stage) == [("succeeded", "", "done")] for stage in ALL)


def test_nothing_starts_before_what_it_needs_has_ended(scene: Scene) -> None:
    def check(job: Job, _: JobStatus) -> None:
        instance = scene.plan.instance(job.name)
        for needed in instance.needs.values():
            (attempt,) = scene.run.attempts(needed)
            assert attempt.end is not None

    scene.also = check
    assert scene.supervisor().run() == "succeeded"


def test_what_is_complete_is_not_started(scene: Scene) -> None:
    for stage in ("corpus", "encoder", "codebook"):
        scene.publish(stage)
    assert scene.supervisor().run() == "succeeded"
    assert scene.started() == ALL[3:]
    assert scene.run.attempts(scene.id("corpus")) == ()


def test_a_finished_run_starts_nothing(scene: Scene) -> None:
    for stage in ALL:
        scene.publish(stage)
    assert scene.supervisor().run() == "succeeded"
    assert scene.started() == []


def at_once(scene: Scene, supervisor: Supervisor) -> int:
    """The most training jobs that ran side by side."""
    most = 0

    def count(job: Job, _: JobStatus) -> None:
        nonlocal most
        running = [
            a
            for i in scene.plan.instances
            if i.stage == "train"
            for a in scene.run.attempts(i.id)
            if a.end is None
        ]
        most = max(most, len(running))

    scene.also = count
    assert supervisor.run() == "succeeded"
    return most


@pytest.mark.parametrize(("cpus", "most"), [(2, 2), (1, 1), (8, 3)])
def test_variants_run_side_by_side_as_far_as_the_cpus_go(
    tmp_path: Path, cpus: int, most: int
) -> None:
    scene = Scene(tmp_path, swept(recipe(), seed=[1, 2, 3]), cpus=cpus)
    assert at_once(scene, scene.supervisor()) == most
    assert scene.started().count("train") == 3
    assert scene.started().count("pack") == 1


def test_a_stage_that_asks_for_more_than_there_is_runs_alone(tmp_path: Path) -> None:
    wide = {"train": {"ranks_per_node": 4, "cpus_per_worker": 2}}
    scene = Scene(tmp_path, swept(recipe(), seed=[1, 2]), cpus=2, resources=wide)
    assert at_once(scene, scene.supervisor()) == 1


def test_codebooks_of_one_pass_are_one_job(tmp_path: Path) -> None:
    scene = Scene(tmp_path, swept(recipe(), **{"tokenizer.num_clusters": [20, 40]}))
    assert scene.supervisor().run() == "succeeded"
    assert scene.started().count("codebook") == 1
    assert scene.started().count("tokenize") == 1
    assert scene.started().count("train") == 2


def test_of_one_pass_what_was_published_is_used_whatever_became_of_the_others(
    tmp_path: Path,
) -> None:
    """One codebook cannot be fitted: the units of the other are made, and its model trained."""
    scene = Scene(tmp_path, swept(recipe(), **{"tokenizer.num_clusters": [20, 40]}))

    def publish_one(job: Job, _: JobStatus) -> None:
        if (stage := job.name.split("-")[0]) in ("codebook", "tokenize"):
            good = scene.plan.group(scene.id(stage))[1]
            artifact = scene.store.artifact(stage, good.key)
            artifact.publish(inputs=good.inputs, facts={}, producer={})

    scene.also = publish_one
    script = {"codebook": [failed(2)], "tokenize": [failed(1)]}
    assert scene.supervisor(script).run() == "failed"
    started = scene.started()
    assert [started.count(s) for s in ("codebook", "tokenize", "pack", "train")] == [1, 1, 1, 1]


def test_a_killed_job_is_started_again(scene: Scene) -> None:
    assert scene.supervisor({"train": [KILLED]}).run() == "succeeded"
    assert scene.started().count("train") == 2
    assert scene.ends("train") == [("failed", "killed", "resume"), ("succeeded", "", "done")]
    first = scene.run.attempts(scene.id("train"))[0].end
    assert first is not None
    assert (first["exit_code"], first["node"]) == (-9, "n1")


def test_a_preempted_job_is_started_again(scene: Scene) -> None:
    assert scene.supervisor({"train": [PREEMPTED]}).run() == "succeeded"
    assert scene.ends("train")[0] == ("preempted", "preempted", "resume")


def test_a_wrong_request_is_not_tried_again(scene: Scene) -> None:
    assert scene.supervisor({"pack": [failed(2)]}).run() == "failed"
    assert scene.started() == ["corpus", "encoder", "codebook", "tokenize", "pack"]
    assert scene.ends("pack") == [("failed", "bad_request", "stop")]


def test_two_ends_without_progress_stop_the_stage(scene: Scene) -> None:
    assert scene.supervisor({"pack": [failed(1), failed(1), failed(1)]}).run() == "failed"
    assert scene.ends("pack") == [("failed", "error", "resume"), ("failed", "error", "stop")]


def test_success_without_an_artifact_is_not_success(scene: Scene) -> None:
    lying = JobStatus(state=JobState.SUCCEEDED, exit_code=0, node="n1")
    assert scene.supervisor({"pack": [lying, lying]}).run() == "failed"
    assert scene.ends("pack") == [("failed", "unknown", "resume"), ("failed", "unknown", "stop")]


def test_an_artifact_is_success_whatever_the_exit_code(scene: Scene) -> None:
    scene.also = lambda job, _: scene.publish("pack") if job.name == scene.id("pack") else None
    assert scene.supervisor({"pack": [failed(1)]}).run() == "succeeded"
    assert scene.ends("pack") == [("succeeded", "", "done")]


def test_a_variant_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    scene = Scene(tmp_path, swept(recipe(), seed=[1, 2]))
    assert scene.supervisor({"train": [failed(2)]}).run() == "failed"
    assert scene.started().count("train") == 2
    assert scene.started().count("perplexity") == 1


def test_the_driver_tells_the_cause_and_its_last_sentence(scene: Scene) -> None:
    def complain(job: Job, _: JobStatus) -> None:
        if job.name == scene.id("pack"):
            (attempt,) = scene.run.attempts(job.name)
            attempt.record_failure(Cause.BAD_DATA, "nothing left after the language filter")

    scene.also = complain
    assert scene.supervisor({"pack": [failed(1)]}).run() == "failed"
    assert scene.ends("pack") == [("failed", "bad_data", "stop")]
    (attempt,) = scene.run.attempts(scene.id("pack"))
    assert (attempt.end or {})["message"] == "nothing left after the language filter"


def test_a_foreign_word_in_the_log_tells_the_cause(scene: Scene) -> None:
    def complain(job: Job, _: JobStatus) -> None:
        if job.name == scene.id("pack"):
            job.log.parent.mkdir(parents=True, exist_ok=True)
            job.log.write_text("x" * 30_000 + "\nOSError: [Errno 28] No space left on device\n")

    scene.also = complain
    assert scene.supervisor({"pack": [failed(1)]}).run() == "succeeded"
    assert scene.ends("pack")[0] == ("failed", "storage", "resume")


def test_cancelling_a_stage_stops_it_and_what_needs_it(scene: Scene) -> None:
    scene.also = lambda job, _: (
        scene.run.request_cancel("train") if job.name == scene.id("train") else None
    )
    # Never ending by itself: cancelled before it is asked a second time.
    assert scene.supervisor({"train": [KILLED]}).run() == "cancelled"
    assert scene.ends("train") == [("cancelled", "cancelled", "stop")]
    assert "perplexity" not in scene.started()
    (request,) = scene.run.cancel_requests()
    assert request["obeyed_at"] >= request["asked_at"], "whoever asked knows that it is done"


def test_cancelling_the_run_stops_everything(scene: Scene) -> None:
    scene.also = lambda _job, _: scene.run.request_cancel(None)
    assert scene.supervisor({"corpus": [KILLED], "encoder": [KILLED]}).run() == "cancelled"
    assert set(scene.started()) <= {"corpus", "encoder"}


def test_an_old_wish_to_stop_does_not_stop_a_resumed_run(scene: Scene) -> None:
    scene.run.request_cancel(None)
    assert scene.supervisor().run() == "succeeded"


def test_stopping_the_supervisor_ends_its_jobs_and_leaves_the_rest(scene: Scene) -> None:
    supervisor = scene.supervisor({"pack": [KILLED]})
    scene.also = lambda job, _: supervisor.stop() if job.name == scene.id("pack") else None
    assert supervisor.run() == "pending"
    (attempt,) = scene.run.attempts(scene.id("pack"))
    assert attempt.end["state"] == attempt.end["cause"] == "preempted"
    ref = JobRef(backend="fake", id=str(len(scene.backend.jobs) - 1))
    assert scene.backend.poll([ref])[ref].state is not JobState.RUNNING
    assert scene.supervisor().run() == "succeeded"


def hold(scene: Scene, stage: str, process: Process) -> None:
    """Another run's lease on a stage's key."""
    instance = scene.plan.instance(scene.id(stage))
    lease = Lease(number=1, holder="other/pack", process=process, heartbeat_at=time.time())
    storage = scene.store.artifact(stage, instance.key).storage
    storage.create_json("lease/000001.json", asdict(lease))


def test_what_another_run_works_on_is_waited_for_and_taken(scene: Scene) -> None:
    hold(scene, "pack", Process.current())
    publishing = threading.Timer(0.6, scene.publish, ["pack"])
    publishing.start()
    assert scene.supervisor().run() == "succeeded"
    publishing.join()
    assert "pack" not in scene.started()
    assert scene.run.attempts(scene.id("pack")) == ()


def test_what_a_dead_run_worked_on_is_started(scene: Scene) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        hold(scene, "pack", Process.of(child.pid))
        child.kill()
    assert scene.supervisor().run() == "succeeded"
    assert "pack" in scene.started()


class Session:
    """Stands for a Ray session that is up at once."""

    env: Mapping[str, str] = {}

    def __init__(self, stop_takes_s: float = 0.0, *, ends_at_once: bool = False) -> None:
        self.is_stopped, self.stop_takes_s = False, stop_takes_s
        self._ends_at_once = ends_at_once

    def is_alive(self) -> bool:
        return not self.is_stopped

    def wait_ready(self) -> None:
        if self._ends_at_once:
            self.is_stopped = True
            raise BackendError("ray: the session did not start")

    def stop(self) -> None:
        time.sleep(self.stop_takes_s)
        self.is_stopped = True


def up_to_tokenize(
    scene: Scene, sessions: list[Session], *ends: JobStatus, stop_takes_s: float = 0.0
) -> Supervisor:
    """A supervisor of the tokenize stage alone, whose Ray sessions are collected."""

    def start_ray() -> Session:
        sessions.append(Session(stop_takes_s))
        return sessions[-1]

    for stage in ("corpus", "encoder", "codebook"):
        scene.publish(stage)
    only = scene.id("tokenize")
    return scene.supervisor({"tokenize": list(ends)}, only=only, start_ray=start_ray)


def test_ray_starts_only_when_another_run_has_left_its_stage_to_us(scene: Scene) -> None:
    """Nodes that joined would have nothing to do until then."""
    sessions: list[Session] = []
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        hold(scene, "tokenize", Process.of(child.pid))
        seen: list[int] = []

        def leave() -> None:
            seen.append(len(sessions))
            child.kill()

        leaving = threading.Timer(0.6, leave)
        leaving.start()
        assert up_to_tokenize(scene, sessions).run() == "succeeded"
        leaving.join()
    assert (seen, len(sessions)) == ([0], 1)
    assert sessions[0].is_stopped


@pytest.mark.parametrize("code", [1, -6, -9])
def test_a_session_that_went_away_under_an_attempt_is_its_cause(scene: Scene, code: int) -> None:
    sessions: list[Session] = []
    supervisor = up_to_tokenize(scene, sessions, failed(code))

    def end_first(*_: object) -> None:
        sessions[0].is_stopped = True

    scene.also = end_first
    assert supervisor.run() == "succeeded"
    assert scene.ends("tokenize")[0] == ("failed", "ray_lost", "resume")
    assert len(sessions) == 2


@pytest.mark.parametrize("num_ended", [1, 2])
def test_a_session_that_ends_before_it_answers_is_replaced(scene: Scene, num_ended: int) -> None:
    sessions: list[Session] = []
    scene.publish_before("tokenize")

    def start_ray() -> Session:
        sessions.append(Session(ends_at_once=len(sessions) < num_ended))
        return sessions[-1]

    only = scene.id("tokenize")
    assert scene.supervisor({}, only=only, start_ray=start_ray).run() == "succeeded"
    assert len(sessions) == num_ended + 1


def test_sessions_that_never_answer_end_the_run(scene: Scene) -> None:
    scene.publish_before("tokenize")
    only = scene.id("tokenize")
    supervisor = scene.supervisor({}, only=only, start_ray=lambda: Session(ends_at_once=True))
    with pytest.raises(BackendError, match="the session did not start"):
        supervisor.run()


def test_ray_ends_when_another_run_was_faster(scene: Scene) -> None:
    """Both saw that nobody was at work; the nodes that have joined ours can be given back."""
    sessions: list[Session] = []
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        other = Process.of(child.pid)
        scene.also = lambda *_: hold(scene, "tokenize", other) if len(sessions) == 1 else None
        seen: list[bool] = []

        def leave() -> None:
            deadline = time.monotonic() + 120  # seconds of a machine that does much else
            while not (sessions and sessions[0].is_stopped) and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.5)  # some looks for the other's lease
            seen.append(sessions[0].is_stopped)
            child.kill()

        leaving = threading.Thread(target=leave)
        leaving.start()
        supervisor = up_to_tokenize(scene, sessions, failed(75), stop_takes_s=0.25)
        assert supervisor.run() == "succeeded"
        leaving.join()
    assert (seen, len(sessions)) == ([True], 2)
    assert len(scene.ends("tokenize")) == 2, "none was started while the other was at work"


def test_losing_the_race_for_a_lease_is_no_failure(scene: Scene) -> None:
    assert scene.supervisor({"pack": [failed(75)]}).run() == "succeeded"
    assert scene.ends("pack") == [("cancelled", "lease_held", "wait"), ("succeeded", "", "done")]


def test_a_supervisor_that_lost_its_right_ends_its_jobs(scene: Scene) -> None:
    beats = iter(range(3))

    def beat() -> None:
        if next(beats) == 2:
            raise LeaseHeldError("lost")

    supervisor = scene.supervisor({"corpus": [KILLED], "encoder": [KILLED]}, beat=beat)
    with pytest.raises(LeaseHeldError):
        supervisor.run()
    refs = [JobRef(backend="fake", id=str(n)) for n in range(len(scene.backend.jobs))]
    assert refs
    assert all(s.state is not JobState.RUNNING for s in scene.backend.poll(refs).values())


def test_a_supervisor_whose_run_has_moved_ends_and_starts_nothing(scene: Scene) -> None:
    """Its lease was taken before anything said where the run goes."""
    beats = iter(range(3))

    def beat() -> None:
        if next(beats) == 1:
            record_moved(scene.run.storage, Moved(to="s3://b/runs/r", at=1.0))
            raise LeaseHeldError("lost")

    supervisor = scene.supervisor({"corpus": [KILLED], "encoder": [KILLED]}, beat=beat)
    assert supervisor.run() == "cancelled"
    assert supervisor.has_moved
    assert len(scene.ends("corpus")) == 1
    assert not scene.run.attempts(scene.id("train"))


def test_a_supervisor_of_a_run_that_has_moved_starts_nothing(scene: Scene) -> None:
    record_moved(scene.run.storage, Moved(to="s3://b/runs/r", at=1.0))
    assert scene.supervisor().run() == "cancelled"
    assert not scene.backend.jobs


def test_an_attempt_is_recorded_before_its_job_is_sent(scene: Scene) -> None:
    seen: list[AttemptFolder] = []
    scene.also = lambda job, _: seen.extend(scene.run.attempts(job.name))
    scene.supervisor().run()
    assert len(seen) == len(ALL)


def test_an_attempt_that_waits_for_another_run_is_not_counted(scene: Scene) -> None:
    """One start that may fail remains when another run had the lease before."""
    assert scene.supervisor({"pack": [failed(75), failed(1)]}).run() == "succeeded"
    assert [e[2] for e in scene.ends("pack")] == ["wait", "resume", "done"]


def test_earlier_ends_count_for_a_stage_that_is_taken_over(scene: Scene) -> None:
    """A job that Slurm has started again is at its second end without progress."""
    scene.publish_before("pack")
    past = [("error", 0.0, "n1")]
    supervisor = scene.supervisor({"pack": [failed(1)]}, only=scene.id("pack"), past=past)
    assert supervisor.run() == "failed"
    assert scene.ends("pack") == [("failed", "error", "stop")]


def test_one_stage_alone_leaves_the_others(scene: Scene) -> None:
    scene.publish_before("pack")
    assert scene.supervisor(only=scene.id("pack")).run() == "succeeded"
    assert scene.started() == ["pack"]


def test_one_stage_waits_for_nothing_that_nobody_makes(scene: Scene) -> None:
    assert scene.supervisor(only=scene.id("pack")).run() == "pending"
    assert scene.started() == []


def test_what_is_noted_with_each_attempt(scene: Scene) -> None:
    scene.publish_before("pack")
    scene.supervisor(only=scene.id("pack"), about={"job": "12", "node": "n7"}).run()
    (attempt,) = scene.run.attempts(scene.id("pack"))
    assert (attempt.started["job"], attempt.started["node"]) == ("12", "n7")
    assert attempt.started["supervisor"] > 0


def test_why_a_supervisor_was_stopped_is_the_cause(scene: Scene) -> None:
    supervisor = scene.supervisor({"corpus": [KILLED], "encoder": [KILLED]})

    def stop(*_: object) -> None:
        supervisor.stop("walltime")
        supervisor.stop("preempted")  # the first reason stands

    scene.also = stop
    assert supervisor.run() == "pending"
    assert scene.ends("corpus") == [("failed", "walltime", "resume")]
    assert supervisor.is_stopped


def test_a_failing_node_is_left_to_who_chooses_nodes(scene: Scene) -> None:
    """Inside one allocation nothing is started elsewhere; the whole run starts it again."""
    past = [("killed", 0.0, "n1"), ("killed", 5.0, "n2")]
    scene.publish_before("pack")
    one = scene.supervisor({"pack": [failed(1)]}, only=scene.id("pack"), past=past)
    assert one.run() == "failed"
    assert scene.ends("pack") == [("failed", "error", "elsewhere")]


def test_the_node_that_an_attempt_blames_is_recorded(scene: Scene) -> None:
    def blame(job: Job, _: JobStatus) -> None:
        if job.name == scene.id("train") and len(scene.run.attempts(job.name)) == 1:
            (attempt,) = scene.run.attempts(job.name)
            line = '{"at": 1.0, "kind": "rank_failed", "rank": 3, "node": "n9"}\n'
            attempt.storage.create("events-0001.jsonl", line.encode())

    scene.also = blame
    assert scene.supervisor({"train": [KILLED]}).run() == "succeeded"
    ends = [a.end["node"] for a in scene.run.attempts(scene.id("train"))]
    assert ends == ["n9", "fake"]


def test_cancelling_one_instance_leaves_the_other_variants(tmp_path: Path) -> None:
    scene = Scene(tmp_path, swept(recipe(), seed=[1, 2]))
    first, second = (i.id for i in scene.plan.instances if i.stage == "train")
    scene.also = lambda job, _: scene.run.request_cancel(first) if job.name == first else None
    assert scene.supervisor({"train": [KILLED]}).run() == "cancelled"
    assert [a.end["state"] for a in scene.run.attempts(first)] == ["cancelled"]
    assert [a.end["state"] for a in scene.run.attempts(second)] == ["succeeded"]


def test_figures_are_written_while_it_runs_or_never(scene: Scene) -> None:
    seen: list[bool] = []
    scene.also = lambda *_: seen.append(scene.run.storage.exists(FILE))
    scene.supervisor(figures_every_s=0.0).run()
    assert seen[-1]
    scene.run.storage.delete(FILE)
    scene.supervisor(figures_every_s=float("inf")).run()
    assert not scene.run.storage.exists(FILE)


def test_figures_lie_in_the_run_folder(scene: Scene) -> None:
    for _ in range(2):
        write_figures(scene.run, scene.store, lambda: Observed(is_alive=False))
    lines = scene.run.storage.read_bytes("metrics.openmetrics").decode().splitlines()
    assert f'orchestrator_run_state{{run="{scene.run.name}",state="pending"}} 1.0' in lines
    assert lines[-1] == "# EOF"


def run_for(
    num_ticks: int,
    scene: Scene,
    script: dict[str, Sequence[JobStatus]],
    look: Callable[[], object] = lambda: None,
    **how: Any,
) -> None:
    """Supervise for so many ticks, look, and stop."""
    ticks, supervisors = itertools.count(1), list[Supervisor]()

    def beat() -> None:
        if next(ticks) == num_ticks:
            look()
            supervisors[0].stop()

    supervisors.append(scene.supervisor(script, beat=beat, **how))
    supervisors[0].run()


def test_a_job_that_runs_when_its_supervisor_stops_is_cancelled(scene: Scene) -> None:
    run_for(5, scene, {"corpus": [RUNNING], "encoder": [RUNNING]})
    refs = [JobRef(backend="fake", id=str(n)) for n in range(len(scene.backend.jobs))]
    assert {s.state for s in scene.backend.poll(refs).values()} == {JobState.CANCELLED}
    assert scene.ends("corpus") == [("preempted", "preempted", "resume")]


def test_ray_is_up_while_its_stage_runs_and_ends_with_the_supervisor(scene: Scene) -> None:
    sessions: list[Session] = []
    seen: list[bool] = []

    def start_ray() -> Session:
        sessions.append(Session())
        return sessions[-1]

    scene.publish_before("tokenize")
    run_for(
        *(8, scene, {"tokenize": [RUNNING]}, lambda: seen.append(sessions[0].is_stopped)),
        only=scene.id("tokenize"),
        start_ray=start_ray,
    )
    assert seen == [False]
    assert [session.is_stopped for session in sessions] == [True]


def test_a_failure_weighs_more_than_a_cancelled_variant(tmp_path: Path) -> None:
    scene = Scene(tmp_path, swept(recipe(), seed=[1, 2]))
    first, second = (i.id for i in scene.plan.instances if i.stage == "train")
    scene.also = lambda job, _: scene.run.request_cancel(second) if job.name == second else None
    assert scene.supervisor({first: [failed(2)], second: [RUNNING]}).run() == "failed"
    assert [a.end["state"] for a in scene.run.attempts(second)] == ["cancelled"]


@pytest.mark.parametrize(("end", "starts"), [(KILLED, 1), (PREEMPTED, 2)])
def test_a_failure_waits_before_it_is_tried_again_and_a_preemption_does_not(
    scene: Scene, end: JobStatus, starts: int
) -> None:
    scene.publish_before("pack")
    run_for(10, scene, {"pack": [end, RUNNING]}, retry_delay_s=3600)
    assert len(scene.run.attempts(scene.id("pack"))) == starts


@pytest.mark.parametrize(("shards", "starts"), [([1, 2, 3], 4), ([1, 1], 2), ([0], 1)])
def test_a_failure_that_got_somewhere_is_tried_again_at_once(
    scene: Scene, shards: list[int], starts: int
) -> None:
    scene.publish_before("tokenize")
    instance = scene.plan.instance(scene.id("tokenize"))
    storage, left = scene.store.artifact(instance.stage, instance.key).storage, list(shards)

    def work(job: Job, _: JobStatus) -> None:
        for number in range(left.pop(0) if left and job.name == instance.id else 0):
            storage.replace(f"shards/000/{number:06d}.parquet", b"units")

    scene.also = work
    run_for(20, scene, {"tokenize": [KILLED] * len(shards) + [RUNNING]}, retry_delay_s=3600)
    assert len(scene.run.attempts(instance.id)) == starts


def test_what_was_finished_while_it_was_cancelled_is_finished(scene: Scene) -> None:
    def finish(job: Job, _: JobStatus) -> None:
        if job.name == scene.id("corpus"):
            scene.publish("corpus")
            scene.run.request_cancel("corpus")

    scene.also = finish
    assert scene.supervisor({"corpus": [RUNNING]}).run() == "succeeded"
    assert len(scene.run.attempts(scene.id("corpus"))) == 1


COSTLY: dict[str, Any] = {"prices": {"cpu_hour": 3600.0}, "limits": {"max_price": 5}}
"""A core costs 1 a second."""


def test_what_runs_when_the_limit_is_reached_saves_and_is_not_tried_again(tmp_path: Path) -> None:
    scene = Scene(tmp_path, **{**COSTLY, "limits": {"max_price": 0.2}})
    scene.publish_before("train")
    supervisor = scene.supervisor({"train": [RUNNING]}, limits_every_s=0.01)
    assert supervisor.run() == "failed"
    assert scene.ends("train") == [("failed", "limit", "stop")]
    assert scene.started() == ["train"]
    (attempt,) = scene.run.attempts(scene.id("train"))
    assert attempt.end is not None
    assert attempt.end["message"] == supervisor.limit
    assert supervisor.limit.startswith("limits.max_price: 0.2")


def test_a_run_on_ray_gives_its_nodes_back_once_its_time_is_over(tmp_path: Path) -> None:
    scene = Scene(tmp_path, backend="ray", ray={"ttl_h": 1e-4})
    scene.publish_before("train")
    supervisor = scene.supervisor({"train": [RUNNING]})
    assert supervisor.run() == "failed"
    assert scene.ends("train") == [("failed", "limit", "stop")]
    assert supervisor.limit == "ray.ttl_h: 0.0001 h are over"


def test_nothing_starts_once_the_limit_is_reached(tmp_path: Path) -> None:
    """Looked at before each start, whatever the time since the last look."""
    scene = Scene(tmp_path, **COSTLY)
    scene.publish_before("pack")

    def spend(job: Job, _: JobStatus) -> None:
        if job.name == scene.id("pack"):
            earlier = scene.run.begin_attempt(
                scene.id("corpus"), started_at=0.0, gpus=0, price_per_h=3600.0
            )
            earlier.finish(ended_at=6.0, state="failed")

    scene.also = spend
    assert scene.supervisor(limits_every_s=1000.0).run() == "failed"
    assert scene.started() == ["pack"]
    assert scene.supervisor().run() == "failed"
    assert scene.started() == []


@pytest.mark.parametrize(
    "settings",
    [
        {**COSTLY, "limits": {"max_price": 1e-9}},
        {"backend": "ray", "ray": {"ttl_h": 1e-12}},
    ],
)
def test_what_is_done_is_no_failure_of_a_limit(tmp_path: Path, settings: dict[str, Any]) -> None:
    scene = Scene(tmp_path, **settings)
    scene.publish_before("continuations")
    scene.publish("continuations")
    supervisor = scene.supervisor(limits_every_s=0.0)
    assert (supervisor.run(), supervisor.limit) == ("succeeded", "")


def test_an_attempt_notes_what_it_holds(tmp_path: Path) -> None:
    resources = {"train": {"gpus_per_node": 8, "nodes": 2, "cpus_per_worker": 3}}
    scene = Scene(tmp_path, cpus=64, resources=resources, prices={"gpu_hour": 2.0, "cpu_hour": 0.5})
    assert scene.supervisor(about={"job": "12"}).run() == "succeeded"
    noted = {
        stage: [scene.run.attempts(scene.id(stage))[0].started[n] for n in ("gpus", "price_per_h")]
        for stage in ("corpus", "train")
    }
    assert noted == {"corpus": [0, 2 * 0.5], "train": [16, 2 * 16 + 0.5 * 48]}


@pytest.mark.parametrize(("backend", "nodes"), [("ray", 4), ("local", None)])
def test_a_training_notes_for_how_many_nodes_that_is(
    tmp_path: Path, backend: str, nodes: int | None
) -> None:
    """Where they come and go, what it has had of them is counted."""
    wanted = {"min": 2, "max": 4} if nodes else 1
    scene = Scene(tmp_path, backend=backend, resources={"train": {"nodes": wanted}})
    assert scene.supervisor().run() == "succeeded"
    noted = [scene.run.attempts(scene.id(stage))[0].started for stage in ("train", "tokenize")]
    assert [note.get("nodes") for note in noted] == [nodes, None]


class Beat:
    """A heartbeat that the store refuses from the second to some later tick."""

    def __init__(self, code: int, until: float = math.inf) -> None:
        self._code, self._until = code, until
        self.ticks = 0

    def __call__(self) -> None:
        self.ticks += 1
        if 2 <= self.ticks < self._until:
            raise OSError(self._code, os.strerror(self._code), "/store/lease")


STORE_AWAY = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.EIO]


@pytest.mark.parametrize("code", STORE_AWAY)
def test_a_store_that_refuses_is_waited_for(scene: Scene, code: int) -> None:
    patience = StorePatience(for_s=60.0, pause_s=0.01)
    supervisor = scene.supervisor(beat=Beat(code, until=6), patience=patience)
    assert supervisor.run() == "succeeded"


@pytest.mark.parametrize("code", STORE_AWAY)
def test_a_store_that_stays_away_ends_the_supervisor_with_the_systems_words(
    scene: Scene, code: int
) -> None:
    patience = StorePatience(for_s=0.05, pause_s=0.02)
    supervisor = scene.supervisor({"corpus": [RUNNING]}, beat=Beat(code), patience=patience)
    with pytest.raises(OSError, match="/store/lease") as raised:
        supervisor.run()
    assert cause_of(raised.value) is Cause.STORAGE
    assert set(scene.started()) <= {"corpus", "encoder"}, "nothing more was started"


def test_what_is_not_the_stores_fault_ends_the_supervisor_at_once(scene: Scene) -> None:
    beat = Beat(errno.EMFILE)
    with pytest.raises(OSError, match="/store/lease"):
        scene.supervisor(beat=beat).run()
    assert beat.ticks == 2


def test_a_supervisor_that_waits_for_its_store_can_be_stopped(scene: Scene) -> None:
    patience = StorePatience(for_s=60.0, pause_s=0.01)
    beat = Beat(errno.ENOSPC)
    supervisor = scene.supervisor({"corpus": [RUNNING]}, beat=beat, patience=patience)
    threading.Timer(0.3, supervisor.stop).start()
    assert supervisor.run() in ("running", "pending", "failed")


class Forks:
    """Stands for the process that forks ranks."""

    def __init__(self, scene: Scene) -> None:
        self._scene, self.stopped_after = scene, list[list[str]]()

    def env(self) -> dict[str, str]:
        return {"ORCHESTRATOR_STANDBY": "here"}

    def stop(self) -> None:
        self.stopped_after.append(self._scene.started())


def test_all_attempts_with_ranks_are_told_who_forks_them(scene: Scene) -> None:
    forks = Forks(scene)
    supervisor = scene.supervisor({"train": [KILLED, PREEMPTED]}, standby=forks)
    assert supervisor.run() == "succeeded"
    told = [job.name.split("-")[0] for job in scene.backend.jobs if STANDBY in job.env]
    assert told == ["train"] * 3
    first = forks.stopped_after[0]
    assert (first.count("train"), "perplexity" in first) == (3, False), "its memory was kept"


def test_who_forks_ranks_ends_with_a_supervisor_that_is_stopped(scene: Scene) -> None:
    forks = Forks(scene)
    scene.publish_before("train")
    supervisor = scene.supervisor({"train": [RUNNING]}, standby=forks)
    timer = threading.Timer(0.3, supervisor.stop)
    timer.start()
    supervisor.run()
    timer.join()
    assert forks.stopped_after == [["train"]]
