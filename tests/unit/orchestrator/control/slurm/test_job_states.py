"""What is known of jobs without asking anybody."""

from __future__ import annotations

import time

import pytest

from orchestrator.control.slurm.job_states import close_attempts, failing_nodes
from orchestrator.ledger.status import JobState, JobStatus
from orchestrator.ledger.submission import Submissions
from tests.unit.orchestrator.control.slurm.scene import STAGES, Scene
from tests.unit.orchestrator.recipes import cluster


def test_a_job_nobody_knows_keeps_its_state_until_that_lasts_too_long(scene: Scene) -> None:
    scene.publish(*STAGES[:5])
    scene.start()
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
