"""Who carries a run on Slurm: what is submitted, kept and cleared, and what is known without it."""

from __future__ import annotations

import argparse
import signal
import time
from pathlib import Path

import pytest

from orchestrator.backends.slurm import LAUNCH_FAILED
from orchestrator.backends.slurm_allocation import Allocation
from orchestrator.control.executor import observe
from orchestrator.control.slurm.executor import SlurmExecutor
from orchestrator.control.slurm.job_states import close_attempts, failing_nodes, work_left
from orchestrator.control.slurm.ray_cluster import MAX_IN_VAIN, Elastic
from orchestrator.control.slurm.sentinel import _ensured, objection, objections
from orchestrator.control.slurm.stage_job import _WARNINGS, _supervise
from orchestrator.errors import BackendError, RequestError
from orchestrator.ledger.invitation import Invitation
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import JobState, JobStatus, run_status
from orchestrator.ledger.store import Store
from orchestrator.ledger.submission import Submissions
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe
from tests.unit.orchestrator.scheduler import Answers

STAGES = ("corpus", "encoder", "codebook", "tokenize", "pack", "train", "perplexity")
NUM_JOBS = len(STAGES) + 2 + 1
"""Workers of codebook and tokenize, and the sentinel."""
COUNTING = """#!/bin/sh
echo "sbatch $*" >> {folder}/asked
echo "Submitted batch job $(grep -c ^sbatch {folder}/asked)"
"""


class Scene:
    """A run on a Slurm that says what a test wants, and accepts everything."""

    def __init__(self, tmp_path: Path, answers: Answers) -> None:
        self.answers, self.store = answers, Store.open(str(tmp_path / "store"))
        where = cluster(self.store.storage.url, backend="slurm", slurm={"max_resumes": 2})
        self.run = RunFolder(self.store.run_storage("small"))
        asked = recipe(**{"evaluate.continuations": None})
        self.run.create(plan_of(asked), asked, where, {}, {})
        sbatch = answers.folder / "sbatch"
        sbatch.write_text(COUNTING.format(folder=answers.folder))
        sbatch.chmod(0o755)
        self.books(), self.queue(), answers.say("scancel", "")
        self.executor = SlurmExecutor()

    def id(self, stage: str) -> str:
        return next(i.id for i in self.run.plan().instances if i.stage == stage)

    def publish(self, *stages: str) -> None:
        for stage in stages:
            i = self.run.plan().instance(self.id(stage))
            facts = {"num_shards": 4}
            self.store.artifact(i.stage, i.key).publish(inputs=i.inputs, facts=facts, producer={})

    def objection(self, submission: int) -> str:
        return objection(self.run, self.store, submission)

    def job(self, stage: str) -> str:
        return Submissions(self.run.storage).newest_jobs()["stage", self.id(stage)][0].id

    def books(self, **words: str) -> None:
        """What sacct says of the stages' jobs, and nothing of others."""
        rows = [f"{self.job(stage)}|{word}|1:0|node1" for stage, word in words.items()]
        self.answers.say("sacct", "\n".join([*rows, ""]))

    def queue(self, **words: str) -> None:
        rows = [f"{self.job(stage)}|{word}|node1|None|x" for stage, word in words.items()]
        self.answers.say("squeue", "\n".join([*rows, ""]))

    def asked(self, command: str) -> list[str]:
        return [line for line in self.answers.asked if line.startswith(command)]


@pytest.fixture
def scene(tmp_path: Path, answers: Answers) -> Scene:
    return Scene(tmp_path, answers)


def test_everything_is_submitted_once(scene: Scene) -> None:
    assert scene.executor.ensure(scene.run, scene.store) == f"{NUM_JOBS} jobs submitted"
    assert scene.executor.ensure(scene.run, scene.store) == "already running"
    assert len(scene.asked("sbatch")) == NUM_JOBS


def test_only_what_is_missing_is_submitted(scene: Scene) -> None:
    scene.publish(*STAGES[:5])
    assert scene.executor.ensure(scene.run, scene.store) == "3 jobs submitted"
    scene.publish(*STAGES)
    assert scene.executor.ensure(scene.run, scene.store) == "everything is done"


def test_after_a_failure_what_waited_for_it_is_submitted_anew(scene: Scene) -> None:
    scene.executor.ensure(scene.run, scene.store)
    scene.publish(*STAGES[:4])
    pack, train = scene.job("pack"), scene.job("train")
    scene.run.begin_attempt(scene.id("pack"))
    scene.books(pack="TIMEOUT", train="PENDING", perplexity="PENDING")
    scene.queue(train="PENDING", perplexity="PENDING")
    assert scene.executor.ensure(scene.run, scene.store) == "4 jobs submitted"
    (cancelled,) = scene.asked("scancel")
    assert train in cancelled.split()
    assert pack not in cancelled.split()
    (attempt,) = scene.run.attempts(scene.id("pack"))
    assert (attempt.end["cause"], attempt.end["state"]) == ("walltime", "failed")


def test_jobs_that_go_on_are_kept(scene: Scene) -> None:
    scene.executor.ensure(scene.run, scene.store)
    scene.publish(*STAGES[:5])
    train = scene.job("train")
    scene.books(train="RUNNING", perplexity="CANCELLED")
    scene.queue(train="RUNNING")
    assert scene.executor.ensure(scene.run, scene.store) == "2 jobs submitted"
    assert scene.job("train") == train
    script = next(scene.run.storage.local_root.glob("submissions/0002/perplexity*/script.sh"))
    assert f"--dependency=afterok:{train}" in script.read_text()


def test_a_submission_that_died_is_adopted(scene: Scene) -> None:
    scene.executor.ensure(scene.run, scene.store)
    folder = scene.run.storage.local_root / "submissions" / "0001"
    (folder / "whole.json").unlink()
    (folder / scene.id("train") / "job.json").unlink()
    tag = f"small 1 {scene.id('train')}"
    script = (folder / scene.id("train") / "script.sh").read_text()
    comment = next(line for line in script.splitlines() if tag in line).split("'")[1]
    scene.answers.say("squeue", f"77|PENDING||Dependency|{comment}\n")
    scene.executor.ensure(scene.run, scene.store)
    assert "77" in [job.id for job in Submissions(scene.run.storage).all()[0].jobs]


def test_a_request_that_is_refused_half_way_leaves_nothing(scene: Scene) -> None:
    sbatch = scene.answers.folder / "sbatch"
    refusing = COUNTING + "case $1 in *pack*) echo 'sbatch: error: no' >&2; exit 1;; esac\n"
    lines = refusing.format(folder=scene.answers.folder).splitlines()
    sbatch.write_text("\n".join([lines[0], lines[3], *lines[1:3], ""]))
    with pytest.raises(RequestError, match=r"small/pack.*no"):
        scene.executor.ensure(scene.run, scene.store)
    (cancelled,) = scene.asked("scancel")
    assert len(cancelled.split()) == 1 + 6


def test_a_job_nobody_knows_keeps_its_state_until_that_lasts_too_long(scene: Scene) -> None:
    scene.publish(*STAGES[:5])
    scene.executor.ensure(scene.run, scene.store)
    scene.queue(train="RUNNING", perplexity="PENDING")
    assert scene.executor.observe([scene.run])["small"].is_alive
    scene.queue()
    train = scene.id("train")
    assert scene.executor.observe([scene.run])["small"].jobs[train].state is JobState.RUNNING
    seen = Submissions(scene.run.storage).seen()
    long_ago = {job: {**row, "absent_since": time.time() - 901} for job, row in seen.items()}
    Submissions(scene.run.storage).remember(long_ago)
    observed = scene.executor.observe([scene.run])["small"]
    assert (observed.jobs[train].state, observed.jobs[train].cause) == (
        JobState.FAILED,
        "node_lost",
    )
    assert not observed.is_alive


def test_without_an_answer_the_last_one_stands(scene: Scene) -> None:
    scene.executor.ensure(scene.run, scene.store)
    scene.queue(corpus="RUNNING")
    scene.executor.observe([scene.run])
    scene.run.begin_attempt(scene.id("corpus"), node="node1")
    for command in ("sacct", "squeue"):
        scene.answers.say(command, f"{command}: error: no route\n", code=1)
    status = run_status(scene.run, scene.store, observe(scene.run))
    assert status["problem"] == "slurm: squeue: no route"
    assert (status["state"], status["stages"][0]["state"]) == ("running", "running")
    with pytest.raises(BackendError, match="no route"):
        scene.executor.ensure(scene.run, scene.store)


@pytest.mark.parametrize(
    ("word", "attempt", "stage"),
    [
        ("RUNNING", "running", "running"),
        ("PENDING", "unknown", "queued"),
        ("NODE_FAIL", "failed", "failed"),
    ],
)
def test_an_attempt_without_an_end_is_what_its_job_is(
    scene: Scene, word: str, attempt: str, stage: str
) -> None:
    scene.executor.ensure(scene.run, scene.store)
    scene.run.begin_attempt(scene.id("corpus"))
    scene.books(corpus=word)
    if word != "NODE_FAIL":
        scene.queue(corpus=word)
    row = run_status(scene.run, scene.store, observe(scene.run))["stages"][0]
    assert (row["attempts"][0]["state"], row["state"]) == (attempt, stage)


def test_an_attempt_ended_when_the_scheduler_says_so_not_when_somebody_looked(
    scene: Scene,
) -> None:
    status = JobStatus(state=JobState.FAILED, cause="node_lost", node="node1")
    for ended_at in (123.0, None):
        attempt = scene.run.begin_attempt(scene.id("corpus"))
        close_attempts(scene.run, scene.store, scene.id("corpus"), status, ended_at)
        assert attempt.end["cause"] == "node_lost"
    first, second = scene.run.attempts(scene.id("corpus"))
    assert first.end["ended_at"] == 123.0
    assert second.end["ended_at"] == pytest.approx(time.time(), abs=60)


def test_nodes_to_keep_off(scene: Scene) -> None:
    for action, node in (("resume", "n1"), ("elsewhere", "n2"), ("elsewhere", "n2")):
        scene.run.begin_attempt(scene.id("train")).finish(action=action, node=node)
    assert failing_nodes(scene.run) == ("n2",)
    scene.run.move(cluster(scene.store.storage.url, backend="slurm"))
    assert failing_nodes(scene.run) == (), "another cluster's nodes"


def test_a_sentinel_resumes_and_knows_when_not_to(scene: Scene) -> None:
    scene.executor.ensure(scene.run, scene.store)

    def hopeless() -> dict[str, str]:
        return objections(scene.run, scene.executor.observe([scene.run])["small"])

    scene.books(corpus="FAILED", codebook="CANCELLED")
    assert hopeless() == {}
    attempt = scene.run.begin_attempt(scene.id("corpus"))
    attempt.finish(action="stop", reason="the request is wrong", cause="bad_request")
    assert hopeless() == {scene.id("corpus"): "the request is wrong"}
    scene.run.request_cancel("train")
    assert hopeless()[scene.id("train")] == "somebody cancelled it"
    assert scene.objection(1) == ""
    scene.run.request_cancel(None)
    assert scene.objection(1) == "somebody cancelled it"
    submissions = Submissions(scene.run.storage)
    submissions.begin("user", {})
    assert scene.objection(1) == "it was submitted again since"
    assert scene.objection(2) == ""
    submissions.begin("sentinel", {})  # and died before it had submitted anything
    assert scene.objection(2) == ""
    scene.run.move(cluster(scene.store.storage.url, backend="local"))
    assert scene.objection(2) == "it has moved to another cluster"


def test_a_sentinel_gives_up_on_a_run_that_gets_no_further(scene: Scene) -> None:
    scene.executor.ensure(scene.run, scene.store)
    submissions, plan = Submissions(scene.run.storage), scene.run.plan()

    def resumed() -> str:
        number = submissions.begin("sentinel", work_left(plan, scene.store))
        submissions.close(number)
        return scene.objection(number)

    assert resumed() == ""
    scene.publish("corpus")
    assert resumed() == "", "the one before got something done"
    shards = scene.store.artifact("tokenize", plan.instance(scene.id("tokenize")).key).storage
    shards.create("shards/a.parquet", b"")
    assert resumed() == "", "and so did this"
    assert resumed().startswith("it was resumed in vain often enough (slurm.max_resumes)")


def test_a_sentinel_tries_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.control.slurm.sentinel._TRY_AGAIN_S", 0.01)
    said = iter([BackendError("no answer"), RequestError("QOSMaxSubmitJobPerUserLimit")])

    def ensure(*_: object, **__: object) -> str:
        if error := next(said, None):
            raise error
        return "3 jobs submitted"

    monkeypatch.setattr(scene.executor, "ensure", ensure)
    assert _ensured(scene.run, scene.store, scene.executor, {}) == "3 jobs submitted"


def test_a_warning_that_came_early_is_heard(scene: Scene) -> None:
    here = Allocation(job_id="3", restarts=0, node_index=0, node="n1", leader_address="127.0.0.1")
    options = argparse.Namespace(instance=scene.id("pack"), walltime_min=60)
    before = {number: signal.getsignal(number) for number in _WARNINGS}
    try:
        state = _supervise(scene.store, scene.run, here, options, [signal.SIGTERM])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert state == "left"
    assert scene.run.attempts(scene.id("pack")) == ()


@pytest.mark.parametrize(
    ("words", "by_hand"),
    [
        ({"corpus": "COMPLETED", "pack": "CANCELLED by 1000"}, {"pack"}),
        ({"tokenize": "COMPLETED", "pack": "CANCELLED by 1000"}, {"pack"}),
        ({"tokenize": "FAILED", "pack": "CANCELLED", "train": "CANCELLED"}, set()),
        ({"tokenize": "PREEMPTED", "pack": "CANCELLED"}, set()),
    ],
)
def test_what_was_cancelled_by_hand_is_told_from_what_followed_from_it(
    scene: Scene, words: dict[str, str], by_hand: set[str]
) -> None:
    scene.executor.ensure(scene.run, scene.store)
    scene.books(**words)
    found = objections(scene.run, scene.executor.observe([scene.run])["small"])
    assert found == {scene.id(s): "its job was cancelled with scancel" for s in by_hand}


def test_what_is_hopeless_is_cleared_and_the_rest_goes_on(scene: Scene) -> None:
    scene.publish(*STAGES[:3])
    scene.executor.ensure(scene.run, scene.store)
    scene.books(tokenize="FAILED")
    scene.queue(pack="PENDING", train="PENDING", perplexity="PENDING")
    scene.answers.say(
        "squeue", (scene.answers.folder / "squeue.txt").read_text() + "2|PENDING||x|y\n"
    )
    said = scene.executor.ensure(scene.run, scene.store, by="sentinel", but=[scene.id("tokenize")])
    assert said == "nothing is left that could be resumed"
    (cancelled,) = scene.asked("scancel")
    assert set(cancelled.split()[1:]) >= {"2", scene.job("pack"), scene.job("train")}


def test_missing_workers_and_sentinels_are_submitted_too(scene: Scene) -> None:
    scene.publish(*STAGES[:3])
    scene.executor.ensure(scene.run, scene.store)
    jobs = Submissions(scene.run.storage).newest_jobs()
    workers = jobs["workers", scene.id("tokenize")][0].id
    sentinel = jobs["sentinel", ""][0].id
    rows = [f"{scene.job(s)}|PENDING|1:0|" for s in ("tokenize", "pack", "train", "perplexity")]
    lost = [f"{workers}_0|FAILED|1:0|node1", f"{sentinel}|CANCELLED|0:0|"]
    scene.answers.say("sacct", "\n".join([*rows, *lost, ""]))
    scene.queue(tokenize="PENDING", pack="PENDING", train="PENDING", perplexity="PENDING")
    assert scene.executor.ensure(scene.run, scene.store) == "2 jobs submitted"


def test_workers_that_are_submitted_alone_bring_a_sentinel_and_are_those_that_count(
    scene: Scene,
) -> None:
    scene.publish(*STAGES[:3])
    scene.executor.ensure(scene.run, scene.store)
    jobs, tokenize = Submissions(scene.run.storage).newest_jobs(), scene.id("tokenize")
    (workers,), (sentinel,) = jobs["workers", tokenize], jobs["sentinel", ""]
    waiting = ("tokenize", "pack", "train", "perplexity")
    rows = [*(f"{scene.job(s)}|PENDING|1:0|" for s in waiting), f"{workers.id}_0|FAILED|1:0|n1"]
    scene.answers.say("sacct", "\n".join([*rows, f"{sentinel.id}|PENDING|0:0|", ""]))
    queued = [scene.job(stage) for stage in waiting] + [sentinel.id]
    scene.answers.say("squeue", "".join(f"{job}|PENDING||Dependency|x\n" for job in queued))
    assert scene.executor.ensure(scene.run, scene.store) == "2 jobs submitted"
    assert sentinel.id in scene.asked("scancel")[0].split(), "the run is the new one's"
    scene.queue()
    replace = scene.executor.replace_workers
    for _ in range(3):
        assert replace(scene.run, scene.store, tokenize) == 1
    names = [job.name for job in Submissions(scene.run.storage).newest_jobs()["workers", tokenize]]
    assert names == [f"{tokenize}-workers{n}" for n in ("", "-2", "-3", "-4")]


def test_what_a_node_could_not_start_is_submitted_anew(scene: Scene) -> None:
    scene.publish(*STAGES[:5])
    scene.executor.ensure(scene.run, scene.store)
    train, perplexity = scene.job("train"), scene.job("perplexity")
    scene.answers.say("sacct", f"{train}|PENDING|0:0|\n{perplexity}|PENDING|0:0|\n")
    held = f"{train}|PENDING||{LAUNCH_FAILED}|x\n{perplexity}|PENDING||Dependency|x\n"
    scene.answers.say("squeue", held)
    status = run_status(scene.run, scene.store, observe(scene.run))["stages"]
    assert LAUNCH_FAILED in next(s["job"] for s in status if s["name"] == "train")
    assert scene.executor.ensure(scene.run, scene.store) == "3 jobs submitted"
    assert {train, perplexity} <= set(scene.asked("scancel")[0].split())


def test_workers_that_left_the_queue_are_replaced(scene: Scene) -> None:
    scene.publish(*STAGES[:3])
    resources = {"tokenize": {"nodes": 5, "max_workers": 5}}
    scene.run.move(cluster(scene.store.storage.url, backend="slurm", resources=resources))
    scene.executor.ensure(scene.run, scene.store)
    workers = Submissions(scene.run.storage).newest_jobs()["workers", scene.id("tokenize")][0].id
    held = f"{workers}|PENDING||{LAUNCH_FAILED}|x\n"
    scene.answers.say("squeue", f"{workers}|RUNNING|n1|None|x\n{workers}|PENDING||x|x\n{held}")
    replace = scene.executor.replace_workers
    assert replace(scene.run, scene.store, scene.id("tokenize")) == 3
    (script,) = scene.run.storage.local_root.glob("submissions/0001/*-workers-2/script.sh")
    assert "--array=0-2%3" in script.read_text()
    scene.answers.say("squeue", f"{workers}|RUNNING|n1|None|x\n" * 5)
    assert replace(scene.run, scene.store, scene.id("tokenize")) == 0


def test_workers_that_were_accepted_when_sbatch_did_not_answer_are_not_asked_for_twice(
    scene: Scene,
) -> None:
    scene.publish(*STAGES[:3])
    resources = {"tokenize": {"nodes": 2, "max_workers": 2}}
    scene.run.move(cluster(scene.store.storage.url, backend="slurm", resources=resources))
    scene.executor.ensure(scene.run, scene.store)
    tokenize, known = scene.id("tokenize"), len(scene.asked("sbatch"))
    (folder,) = scene.run.storage.local_root.glob("submissions/0001/tokenize*-workers")
    script = (folder / "script.sh").read_text()
    comment = next(line for line in script.splitlines() if "--comment" in line).split("'")[1]
    scene.answers.say("squeue", f"77|PENDING||None|{comment}-2\n")
    assert scene.executor.replace_workers(scene.run, scene.store, tokenize) == 0
    assert len(scene.asked("sbatch")) == known
    jobs = Submissions(scene.run.storage).newest_jobs()["workers", tokenize]
    assert [job.id for job in jobs][-1] == "77"


class Session:
    """Stands for a Ray head that is up."""

    invitation = Invitation(address="n1:6379", token="t")

    def __init__(self, **_: object) -> None:
        pass

    def is_alive(self) -> bool:
        return True


def test_without_a_head_nobody_asks_for_workers(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.publish(*STAGES[:3])
    scene.executor.ensure(scene.run, scene.store)
    monkeypatch.setattr("orchestrator.control.slurm.ray_cluster.LOOK_EVERY_S", 0.0)
    tokenize, arrays = scene.id("tokenize"), len(scene.asked("sbatch"))
    here = Allocation(job_id="3", restarts=0, node_index=0, node="n1", leader_address="127.0.0.1")
    monkeypatch.setattr("orchestrator.control.slurm.ray_cluster.RaySession", Session)
    elastic = Elastic(scene.store, scene.run, tokenize, here)
    elastic.look()
    assert len(scene.asked("sbatch")) == arrays
    elastic.start_head()
    for _ in range(10):
        elastic.look()
    assert len(scene.asked("sbatch")) == arrays + 1 + MAX_IN_VAIN, "in vain, that is enough"
