"""The document of ``status --json``: its fields are a contract, its states follow the store."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from orchestrator.control.executor import observe
from orchestrator.errors import Cause, CorruptError
from orchestrator.ledger.lease import Process
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import (
    JobState,
    JobStatus,
    Observed,
    Reader,
    StatusReader,
    run_progress,
    run_status,
)
from orchestrator.ledger.storage import Storage, to_json
from orchestrator.ledger.store import Store
from orchestrator.plan.planner import Instance
from tests.unit.orchestrator.before import unpack
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe

ME = Process.current().__dict__
GONE = {**ME, "start_ticks": 1}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.fixture
def run(store: Store) -> RunFolder:
    run = RunFolder(store.run_storage("small"))
    run.create(plan_of(recipe()), recipe(), cluster(store.storage.url), {}, {})
    return run


def instance(run: RunFolder, stage: str) -> Instance:
    return next(i for i in run.plan().instances if i.stage == stage)


def publish(run: RunFolder, store: Store, *stages: str) -> None:
    for stage in stages:
        i = instance(run, stage)
        artifact = store.artifact(i.stage, i.key)
        artifact.publish(inputs=i.inputs, facts={"num_shards": 4}, producer={})


def stage_row(run: RunFolder, store: Store, stage: str) -> dict[str, Any]:
    return next(s for s in status_of(run, store)["stages"] if s["name"] == stage)


def status_of(run: RunFolder, store: Store) -> dict[str, Any]:
    return run_status(run, store, observe(run)).to_json()


def run_cause(run: RunFolder, store: Store) -> str:
    return run_progress(run, store, observe(run)).cause


def test_the_fields_are_a_contract(run: RunFolder, store: Store) -> None:
    run.begin_attempt(instance(run, "corpus").id)
    status = status_of(run, store)
    assert set(status) == {
        "run", "state", "backend", "problem", "stages", "goodput", "spending",
    }  # fmt: skip
    assert set(status["stages"][0]) == {
        "id", "name", "stage", "node", "variant", "key", "state", "reused", "job", "waits",
        "shards_done", "shards_total", "step", "steps", "checkpoint_interval", "progress",
        "attempts",
    }  # fmt: skip
    assert set(status["stages"][0]["attempts"][0]) == {
        "n", "state", "cause", "action", "reason", "message", "started_at", "ended_at",
        "node", "log",
    }  # fmt: skip
    assert set(status["goodput"]) == {
        "elapsed_s", "productive_s", "checkpoint_s", "lost_s", "restart_s", "startup_s", "queue_s",
        "idle_s", "ettr",
    }  # fmt: skip
    assert set(status["spending"]) == {
        "gpu_hours", "max_gpu_hours", "price", "max_price", "currency",
    }  # fmt: skip
    assert json.loads(json.dumps(status)) == status


def test_the_time_between_checkpoints_is_shown_with_its_reasons(
    run: RunFolder, store: Store
) -> None:
    attempt = run.begin_attempt(instance(run, "train").id)
    said = {"interval_s": 120.0, "stall_s": 2.0, "mtbf_s": 3600.0}
    for n, interval_s in enumerate((60.0, 120.0), start=1):
        event = {"at": 1.0, "kind": "checkpoint_interval", **said, "interval_s": interval_s}
        attempt.storage.create(f"events-{n:04d}.jsonl", json.dumps(event).encode() + b"\n")
    assert stage_row(run, store, "train")["checkpoint_interval"] == said
    assert stage_row(run, store, "corpus")["checkpoint_interval"] is None


def test_progress_is_the_status_without_goodput_and_spending(run: RunFolder, store: Store) -> None:
    run.begin_attempt(instance(run, "corpus").id)
    status = status_of(run, store)
    del status["goodput"], status["spending"]
    assert run_progress(run, store, observe(run)).to_json() == status


def test_a_run_waits_from_its_first_supervisor_on(run: RunFolder, store: Store) -> None:
    run.begin_supervisor(process=GONE, started_at=10.0)
    run.begin_supervisor(process=ME, started_at=12.0)
    corpus, pack = instance(run, "corpus"), instance(run, "pack")
    run.begin_attempt(corpus.id, started_at=14.0).finish(state="succeeded", ended_at=20.0)
    run.begin_attempt(pack.id, started_at=20.0).finish(state="failed", ended_at=22.0)
    goodput = status_of(run, store)["goodput"]
    assert {name: value for name, value in goodput.items() if value} == {
        "elapsed_s": 12.0, "queue_s": 4.0, "productive_s": 6.0, "lost_s": 2.0, "ettr": 0.75,
    }  # fmt: skip


def test_a_dead_runs_time_stands_still(run: RunFolder, store: Store) -> None:
    run.begin_supervisor(process=GONE, started_at=10.0)
    attempt = run.begin_attempt(instance(run, "corpus").id, started_at=14.0)
    attempt.storage.replace("progress.json", to_json({"at": 18.0, "done": 1, "total": 4}))
    goodput = status_of(run, store)["goodput"]
    assert (goodput["elapsed_s"], goodput["lost_s"]) == (8.0, 4.0)


def test_a_run_nobody_has_started(run: RunFolder, store: Store) -> None:
    status = status_of(run, store)
    assert (status["run"], status["state"], status["backend"]) == ("small", "pending", "fake")
    assert [s["id"] for s in status["stages"]] == [i.id for i in run.plan().instances]
    assert {s["state"] for s in status["stages"]} == {"pending"}
    assert run_cause(run, store) == ""


def test_a_supervised_run_is_queued_then_running(run: RunFolder, store: Store) -> None:
    run.begin_supervisor(process=ME)
    assert status_of(run, store)["state"] == "queued"
    assert stage_row(run, store, "train")["state"] == "queued"
    attempt = run.begin_attempt(instance(run, "corpus").id)
    assert status_of(run, store)["state"] == "running"
    row = stage_row(run, store, "corpus")
    assert row["state"] == row["attempts"][0]["state"] == "running"
    assert row["attempts"][0]["log"] == f"{attempt.storage.url}/driver.log"


def test_a_run_whose_supervisor_is_gone_has_failed(run: RunFolder, store: Store) -> None:
    run.begin_supervisor(process=GONE)
    run.begin_attempt(instance(run, "corpus").id)
    status = status_of(run, store)
    assert status["state"] == "failed"
    assert run_cause(run, store) == "node_lost"
    attempt = stage_row(run, store, "corpus")["attempts"][0]
    assert (attempt["state"], attempt["cause"], attempt["ended_at"]) == (
        "failed",
        "node_lost",
        None,
    )


def test_a_supervisor_that_is_killed_is_gone_at_once(run: RunFolder, store: Store) -> None:
    child = os.fork()
    if not child:
        signal.pause()
    run.begin_supervisor(process=Process.of(child).__dict__)
    assert run_cause(run, store) == ""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert run_cause(run, store) == "node_lost"


def test_complete_artifacts_make_a_run_succeed(run: RunFolder, store: Store) -> None:
    publish(run, store, *(i.stage for i in run.plan().instances))
    status = status_of(run, store)
    assert status["state"] == "succeeded"
    assert all(s["state"] == "succeeded" and s["reused"] for s in status["stages"])
    train = stage_row(run, store, "train")
    assert (train["step"], train["steps"]) == (12, 12)


def test_what_this_run_made_is_not_reused(run: RunFolder, store: Store) -> None:
    run.begin_attempt(instance(run, "corpus").id).finish(state="succeeded", cause="", action="done")
    publish(run, store, "corpus")
    row = stage_row(run, store, "corpus")
    assert (row["state"], row["reused"]) == ("succeeded", False)


@pytest.mark.parametrize(
    ("end", "alive", "state"),
    [
        ({"state": "failed", "cause": "error", "action": "resume"}, True, "queued"),
        ({"state": "failed", "cause": "error", "action": "stop"}, True, "failed"),
        ({"state": "failed", "cause": "error", "action": "resume"}, False, "failed"),
        ({"state": "preempted", "cause": "preempted", "action": "resume"}, True, "queued"),
        ({"state": "cancelled", "cause": "cancelled", "action": "stop"}, True, "cancelled"),
        ({"state": "cancelled", "cause": "lease_held", "action": "wait"}, True, "queued"),
        ({"state": "cancelled", "cause": "lease_held", "action": "wait"}, False, "failed"),
    ],
)
def test_the_last_attempt_decides_a_stage_without_artifact(
    run: RunFolder, store: Store, end: dict[str, str], alive: bool, state: str
) -> None:
    run.begin_supervisor(process=ME if alive else GONE)
    run.begin_attempt(instance(run, "train").id).finish(state="failed", action="stop")
    run.begin_attempt(instance(run, "train").id).finish(**end)
    row = stage_row(run, store, "train")
    assert row["state"] == state
    assert [a["n"] for a in row["attempts"]] == [1, 2]
    assert row["attempts"][1]["cause"] == end["cause"]


@pytest.mark.parametrize(
    ("end", "state", "cause"),
    [
        ({"state": "failed", "cause": ""}, "failed", ""),
        ({"state": "cancelled", "cause": ""}, "cancelled", ""),
        ({"state": "failed", "cause": "preempted"}, "failed", "preempted"),
    ],
)
def test_how_the_supervisor_ended_decides_the_run(
    run: RunFolder, store: Store, end: dict[str, str], state: str, cause: str
) -> None:
    run.begin_supervisor(process=ME).finish(**end)
    assert status_of(run, store)["state"] == state
    assert run_cause(run, store) == cause


def test_shards_and_steps_in_the_store_are_counted(run: RunFolder, store: Store) -> None:
    publish(run, store, "corpus")
    tokenize, train = instance(run, "tokenize"), instance(run, "train")
    shards = store.artifact("tokenize", tokenize.key).storage
    shards.create("shards/000/000000.parquet", b"x")
    checkpoints = store.artifact("train", train.key).storage
    checkpoints.create("checkpoints/step-00000006-a0001/MANIFEST.json", b"{}")
    row = stage_row(run, store, "tokenize")
    assert (row["shards_done"], row["shards_total"], row["steps"]) == (1, 4, None)
    row = stage_row(run, store, "train")
    assert (row["step"], row["steps"], row["shards_total"]) == (6, 12, None)


def test_live_steps_count_before_they_are_checkpointed(run: RunFolder, store: Store) -> None:
    run.begin_supervisor(process=ME)
    attempt = run.begin_attempt(instance(run, "train").id)
    said = {"at": 1.0, "done": 9, "total": 12, "unit": "steps", "rates": {"tokens_per_s": 5.0}}
    attempt.storage.replace("progress.json", to_json(said))
    row = stage_row(run, store, "train")
    assert row["step"] == 9
    assert row["progress"] == said


class CountingStorage(Storage):
    """Counts what is asked of a store, by verb and path."""

    def __init__(self, url: str, calls: Counter[str] | None = None) -> None:
        super().__init__(url)
        self.calls = Counter() if calls is None else calls

    def at(self, *parts: str) -> CountingStorage:
        return CountingStorage("/".join((self.url, *parts)), self.calls)

    def exists(self, path: str) -> bool:
        self.calls["exists"] += 1
        return super().exists(path)

    def read_bytes(self, path: str, *, start: int = 0) -> bytes:
        data = super().read_bytes(path, start=start)
        self.calls["read"] += 1  # of what is there
        return data

    def list(self, prefix: str = "") -> dict[str, int]:
        self.calls["list"] += 1
        return super().list(prefix)

    def children(self, prefix: str = "") -> tuple[str, ...]:
        self.calls["children"] += 1
        return super().children(prefix)


def test_looking_again_costs_what_has_changed(run: RunFolder, store: Store) -> None:
    publish(run, store, "corpus", "encoder", "codebook")
    attempt = run.begin_attempt(instance(run, "tokenize").id)
    for n in range(50):
        attempt.storage.create(f"events-{n + 1:04d}.jsonl", b'{"at": 1, "kind": "x"}\n')
    counting = CountingStorage(store.storage.url)
    reader = StatusReader(RunFolder(counting.at("runs", run.name)), Store(counting))
    observed = Observed(is_alive=True)
    reader.read(observed)
    counting.calls.clear()
    progress = {"at": 1.0, "done": 3, "total": 4, "unit": "shards", "rates": {}}
    attempt.storage.replace("progress.json", to_json(progress))
    status = reader.read(observed)
    row = next(s for s in status.stages if s.instance.stage == "tokenize")
    assert (row.shards_done, row.shards_total) == (3, 4)
    assert counting.calls["list"] == 0, "shards are counted by progress.json while it runs"
    assert counting.calls["read"] <= 2
    assert sum(counting.calls.values()) < 30
    attempt.finish(state="failed", cause="error", action="resume")
    reader.read(observed)
    assert counting.calls["list"] == 2, "shards and checkpoints once at the end"


def test_events_are_read_once(run: RunFolder, store: Store) -> None:
    attempt = run.begin_attempt(instance(run, "train").id)
    counting = CountingStorage(store.storage.url)
    reader = StatusReader(RunFolder(counting.at("runs", run.name)), Store(counting))
    event = {"at": 1.0, "kind": "checkpoint_interval", "interval_s": 60.0}
    for n in range(9):
        attempt.storage.create(f"events-{n + 1:04d}.jsonl", json.dumps(event).encode())
    reads = []
    for _ in range(3):
        counting.calls.clear()
        reader.read(Observed(is_alive=True))
        reads.append(counting.calls["read"])
    assert reads[0] >= 9
    assert reads[1:] == [0, 0]


ALIVE, OVER = Observed(is_alive=True), Observed(is_alive=False)
SUCCEEDED = JobStatus(state=JobState.SUCCEEDED)


@pytest.mark.parametrize(
    ("job", "alive", "state"),
    [
        (None, True, "running"),
        (JobState.RUNNING, True, "running"),
        (JobState.SUCCEEDED, False, "succeeded"),
    ],
)
def test_a_run_succeeds_when_nobody_is_at_work_any_more(
    run: RunFolder, store: Store, job: JobState | None, alive: bool, state: str
) -> None:
    """Whoever completes the run then writes its page, and leaves."""
    publish(run, store, *(i.stage for i in run.plan().instances))
    jobs = {i.id: JobStatus(state=job) for i in run.plan().leaders} if job else {}
    observed = Observed(is_alive=alive, jobs=jobs)
    assert run_progress(run, store, observed).state == state


@pytest.mark.parametrize(
    ("job", "state", "cause"),
    [
        (JobStatus(state=JobState.RUNNING), "running", ""),
        (JobStatus(state=JobState.FAILED, cause=Cause.WALLTIME), "failed", "walltime"),
        (JobStatus(state=JobState.FAILED), "failed", "node_lost"),
        (JobStatus(state=JobState.QUEUED), "unknown", ""),
        (JobStatus(state=JobState.UNKNOWN), "unknown", ""),
    ],
)
def test_an_attempt_without_an_end_is_as_its_job_is(
    run: RunFolder, store: Store, job: JobStatus, state: str, cause: str
) -> None:
    leader = instance(run, "corpus").id
    run.begin_attempt(leader)
    status = run_progress(run, store, Observed(is_alive=True, jobs={leader: job}))
    (attempt,) = status.stages[0].attempts
    assert (attempt.state, attempt.cause) == (state, cause)


@pytest.mark.parametrize(
    ("states", "run_state"),
    [
        (("cancelled", "cancelled"), "cancelled"),
        (("cancelled", "failed"), "failed"),
        (("failed", "succeeded"), "failed"),
    ],
)
def test_jobs_that_are_over_decide_the_run(
    run: RunFolder, store: Store, states: tuple[str, str], run_state: str
) -> None:
    ids = [i.id for i in run.plan().leaders][:2]
    jobs = {i: JobStatus(state=JobState(s)) for i, s in zip(ids, states, strict=True)}
    assert run_progress(run, store, Observed(is_alive=False, jobs=jobs)).state == run_state


@pytest.mark.parametrize(
    ("causes", "helps"),
    [(["bad_request"], False), (["bad_data"], False), (["bad_data", "error"], True), ([], True)],
)
def test_resuming_helps_where_something_may_go_otherwise(
    run: RunFolder, store: Store, causes: list[str], helps: bool
) -> None:
    for stage, cause in zip(("corpus", "encoder"), causes, strict=False):
        attempt = run.begin_attempt(instance(run, stage).id)
        attempt.finish(state="failed", cause=cause, action="stop", message="a: b; c")
    assert run_progress(run, store, OVER).resuming_helps is helps


def test_a_strict_reader_raises_and_another_notes_a_gap(run: RunFolder, store: Store) -> None:
    attempt = run.begin_attempt(instance(run, "corpus").id)
    attempt.storage.create("end.json", b"{")
    with pytest.raises(CorruptError):
        run_status(run, store, OVER)
    reader = Reader()
    assert run_status(run, store, OVER, reader).stages[0].attempts[0].state == "failed"
    assert len([g for g in reader.gaps if "end.json cannot be read" in g]) >= 1


def test_a_run_of_the_version_before_is_read(tmp_path: Path) -> None:
    store, run = unpack(tmp_path)
    status = run_status(run, store, Observed(is_alive=False)).to_json()
    assert status["state"] == "succeeded"
    assert [s["node"] for s in status["stages"]][-2:] == ["evaluate", "evaluate"]
    assert {s["step"] for s in status["stages"]} == {None, 12}


def test_a_resumed_training_never_shows_fewer_steps_than_its_checkpoint(
    run: RunFolder, store: Store
) -> None:
    train = instance(run, "train")
    out = store.artifact("train", train.key).storage
    out.create("checkpoints/step-00000008-a0001/MANIFEST.json", b"{}")
    progress = {"at": 1.0, "done": 3, "total": 12, "unit": "steps", "rates": {}}
    run.begin_attempt(train.id).storage.replace("progress.json", to_json(progress))
    status = run_progress(run, store, Observed(is_alive=True))
    assert next(s.step for s in status.stages if s.instance == train) == 8
