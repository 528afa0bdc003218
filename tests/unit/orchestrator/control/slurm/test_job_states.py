"""What is known of jobs without asking anybody."""

from __future__ import annotations

import time

import pytest

from orchestrator.control.slurm.job_states import (
    close_attempts,
    failing_nodes,
    last_known,
    note_own_end,
)
from orchestrator.errors import CorruptError
from orchestrator.ledger.status import JobState, JobStatus
from orchestrator.ledger.submission import Submissions
from tests.unit.orchestrator.control.slurm.scene import STAGES, Scene
from tests.unit.orchestrator.recipes import cluster


def test_a_job_nobody_knows_is_unknown_until_that_lasts_too_long(scene: Scene) -> None:
    scene.publish(*STAGES[:5])
    scene.start()
    scene.queue(train="RUNNING", perplexity="PENDING")
    assert scene.executor.observe([scene.run])["small"].is_alive
    scene.queue()
    train, look = scene.id("train"), lambda: scene.executor.observe([scene.run])["small"]
    assert look().jobs[train].state is JobState.UNKNOWN
    assert look().is_alive
    scene.queue(train="RUNNING", perplexity="PENDING")
    assert look().jobs[train].state is JobState.RUNNING, "the scheduler was only away"
    scene.queue()
    look()
    seen = Submissions(scene.run.storage).seen()
    long_ago = {job: {**row, "absent_since": time.time() - 901} for job, row in seen.items()}
    Submissions(scene.run.storage).remember(long_ago)
    assert (look().jobs[train].state, look().jobs[train].cause) == (JobState.FAILED, "node_lost")
    assert not look().is_alive


@pytest.mark.parametrize(
    ("end", "state"),
    [
        ({"state": "failed", "cause": "error", "action": "stop"}, JobState.FAILED),
        ({"state": "preempted", "cause": "preempted", "action": "resume"}, JobState.PREEMPTED),
        ({"state": "cancelled", "cause": "cancelled", "action": "stop"}, JobState.CANCELLED),
        (None, JobState.UNKNOWN),
    ],
)
def test_an_end_that_an_attempt_has_written_down_proves_its_jobs(
    scene: Scene, end: dict[str, str] | None, state: JobState
) -> None:
    scene.publish(*STAGES[:5])
    scene.start()
    for job in ("another", scene.job("train")):
        attempt = scene.run.begin_attempt(scene.id("train"), job=job)
        if end:
            attempt.finish(**end)
    observed = scene.executor.observe([scene.run])["small"]
    assert observed.jobs[scene.id("train")].state is state
    assert observed.is_alive is (end is None)


def test_a_job_that_ends_by_itself_says_so(scene: Scene) -> None:
    """Also one that was put back into the queue after that."""
    scene.publish(*STAGES[:5])
    scene.start()
    train = scene.job("train")
    note_own_end(scene.run, train, "failed")
    look = lambda: scene.executor.observe([scene.run])["small"].jobs[scene.id("train")]  # noqa: E731
    assert look().state is JobState.FAILED
    scene.run.submissions.reopen(train)
    scene.queue(train="RUNNING")
    assert look().state is JobState.RUNNING


def test_a_sentinel_that_nobody_knows_watches_over_nothing(scene: Scene) -> None:
    scene.publish(*STAGES[:6])
    scene.start()
    scene.books(perplexity="FAILED")
    assert not scene.executor.observe([scene.run])["small"].is_alive
    (sentinel,) = scene.jobs("sentinel", "")
    scene.answers.say("squeue", f"{sentinel.id}|PENDING||Priority|x|y\n")
    assert scene.executor.observe([scene.run])["small"].is_alive


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
    assert failing_nodes(scene.run, "") == ("n2",)
    scene.run.move(cluster(scene.store.storage.url, backend="slurm"))
    assert failing_nodes(scene.run, "") == (), "another cluster's nodes"


@pytest.mark.parametrize(
    ("here", "nodes"), [("blue", ("b2", "b3", "b1")), ("green", ("g1",)), ("red", ()), ("", ())]
)
def test_nodes_are_kept_off_where_they_are(scene: Scene, here: str, nodes: tuple[str, ...]) -> None:
    """However often the run has moved, as it does when its cluster file is changed."""
    for stage, where, node in (("train", "blue", "b1"), ("train", "green", "g1")):
        attempt = scene.run.begin_attempt(scene.id(stage), cluster=where, moves=0)
        attempt.finish(action="elsewhere", node=node)
    for node in ("b2", "b3"):
        attempt = scene.run.begin_attempt(scene.id("tokenize"), cluster="blue", moves=0)
        attempt.note_failing_node(node)
    scene.run.move(cluster(scene.store.storage.url, backend="slurm"))
    assert failing_nodes(scene.run, here) == nodes
    scene.answers.say("scontrol", f"ClusterName = {here}\nMaxArraySize = 1001\n")
    scene.start()
    scripts = scene.run.storage.local_root.glob("submissions/0001/*/script.sh")
    lines = [line for path in scripts for line in path.read_text().splitlines()]
    excluded = {line for line in lines if line.startswith("#SBATCH --exclude")}
    assert excluded == (
        {f"#SBATCH --exclude={','.join(failing_nodes(scene.run, here))}"} if nodes else set()
    )


def test_how_a_run_stands_is_known_in_a_job_without_asking(scene: Scene) -> None:
    """Its figures are written each minute, by whoever supervises a stage."""
    scene.publish(*STAGES[:5])
    scene.start()
    asked = len(scene.answers.asked)
    running = last_known(scene.run, scene.job("train"))
    assert running.jobs[scene.id("train")].state is JobState.RUNNING
    assert running.jobs[scene.id("perplexity")].state is JobState.QUEUED
    assert running.is_alive
    note_own_end(scene.run, scene.job("train"), "failed")
    assert last_known(scene.run, "").jobs[scene.id("train")].state is JobState.FAILED
    assert len(scene.answers.asked) == asked


@pytest.mark.parametrize(
    "row", [{}, {"state": 5}, {"state": "gone"}, {"state": "failed", "cause": 5}]
)
@pytest.mark.parametrize("kind", ["seen", "ended"])
def test_damaged_words_about_jobs_are_named_with_what_to_remove(
    scene: Scene, row: dict[str, object], kind: str
) -> None:
    scene.start()
    job_id = scene.job("corpus")
    if kind == "seen":
        scene.run.submissions.remember({job_id: row})
    else:
        scene.run.submissions.end({job_id: row})
    with pytest.raises(CorruptError, match=r"cannot be understood .*; remove"):
        scene.executor.observe([scene.run])
