"""A run on Slurm: what is submitted, kept and cleared, and what is known without it."""

from __future__ import annotations

import pytest

from orchestrator.backends.slurm import LAUNCH_FAILED
from orchestrator.control.executor import observe
from orchestrator.control.slurm.sentinel import resume
from orchestrator.errors import BackendError, RequestError
from orchestrator.ledger.status import run_status
from tests.unit.orchestrator.control.slurm.scene import COUNTING, NUM_JOBS, STAGES, Scene
from tests.unit.orchestrator.recipes import cluster


def test_everything_is_submitted_once(scene: Scene) -> None:
    assert scene.start() == ("started", NUM_JOBS)
    assert scene.start() == ("running", 0)
    assert len(scene.asked("sbatch")) == NUM_JOBS


def test_only_what_is_missing_is_submitted(scene: Scene) -> None:
    scene.publish(*STAGES[:5])
    assert scene.start() == ("started", 3)
    scene.publish(*STAGES)
    assert scene.start() == ("done", 0)


def test_after_a_failure_what_waited_for_it_is_submitted_anew(scene: Scene) -> None:
    scene.start()
    scene.publish(*STAGES[:4])
    pack, train = scene.job("pack"), scene.job("train")
    scene.run.begin_attempt(scene.id("pack"))
    scene.books(pack="TIMEOUT", train="PENDING", perplexity="PENDING")
    scene.queue(train="PENDING", perplexity="PENDING")
    assert scene.start() == ("started", 4)
    (cancelled,) = scene.asked("scancel")
    assert train in cancelled.split()
    assert pack not in cancelled.split()
    (attempt,) = scene.run.attempts(scene.id("pack"))
    assert (attempt.end["cause"], attempt.end["state"]) == ("walltime", "failed")


def test_jobs_that_go_on_are_kept(scene: Scene) -> None:
    scene.start()
    scene.publish(*STAGES[:5])
    train = scene.job("train")
    scene.books(train="RUNNING", perplexity="CANCELLED")
    scene.queue(train="RUNNING")
    assert scene.start() == ("started", 2)
    assert scene.job("train") == train
    script = next(scene.run.storage.local_root.glob("submissions/0002/perplexity*/script.sh"))
    assert f"--dependency=afterok:{train}" in script.read_text()


def test_a_submission_that_died_is_adopted(scene: Scene) -> None:
    scene.start()
    folder = scene.run.storage.local_root / "submissions" / "0001"
    (folder / "whole.json").unlink()
    (folder / scene.id("train") / "job.json").unlink()
    tag = f"small 1 {scene.id('train')}"
    script = (folder / scene.id("train") / "script.sh").read_text()
    comment = next(line for line in script.splitlines() if tag in line).split("'")[1]
    scene.answers.say("squeue", f"77|PENDING||Dependency|{comment}\n")
    scene.start()
    assert "77" in [job.id for job in scene.run.submissions.all()[0].jobs]


def test_a_request_that_is_refused_half_way_leaves_nothing(scene: Scene) -> None:
    sbatch = scene.answers.folder / "sbatch"
    refusing = COUNTING + "case $1 in *pack*) echo 'sbatch: error: no' >&2; exit 1;; esac\n"
    lines = refusing.format(folder=scene.answers.folder).splitlines()
    sbatch.write_text("\n".join([lines[0], lines[3], *lines[1:3], ""]))
    with pytest.raises(RequestError, match=r"small/pack.*no"):
        scene.start()
    (cancelled,) = scene.asked("scancel")
    assert len(cancelled.split()) == 1 + 6


def test_without_an_answer_the_last_one_stands(scene: Scene) -> None:
    scene.start()
    scene.queue(corpus="RUNNING")
    scene.executor.observe([scene.run])
    scene.run.begin_attempt(scene.id("corpus"), node="node1")
    for command in ("sacct", "squeue"):
        scene.answers.say(command, f"{command}: error: no route\n", code=1)
    status = run_status(scene.run, scene.store, observe(scene.run)).to_json()
    assert status["problem"] == "slurm: squeue: no route"
    assert (status["state"], status["stages"][0]["state"]) == ("running", "running")
    with pytest.raises(BackendError, match="no route"):
        scene.start()


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
    scene.start()
    scene.run.begin_attempt(scene.id("corpus"))
    scene.books(corpus=word)
    if word != "NODE_FAIL":
        scene.queue(corpus=word)
    row = run_status(scene.run, scene.store, observe(scene.run)).to_json()["stages"][0]
    assert (row["attempts"][0]["state"], row["state"]) == (attempt, stage)


def test_what_is_hopeless_is_cleared_and_the_rest_goes_on(scene: Scene) -> None:
    scene.publish(*STAGES[:3])
    scene.start()
    scene.books(tokenize="FAILED")
    scene.queue(pack="PENDING", train="PENDING", perplexity="PENDING")
    scene.answers.say(
        "squeue", (scene.answers.folder / "squeue.txt").read_text() + "2|PENDING||x|y\n"
    )
    started = resume(scene.run, scene.store, scene.executor, [scene.id("tokenize")])
    assert started.outcome == "hopeless"
    (cancelled,) = scene.asked("scancel")
    assert set(cancelled.split()[1:]) >= {"2", scene.job("pack"), scene.job("train")}


def test_missing_workers_and_sentinels_are_submitted_too(scene: Scene) -> None:
    scene.publish(*STAGES[:3])
    scene.start()
    (workers,) = scene.jobs("workers", scene.id("tokenize"))
    (sentinel,) = scene.jobs("sentinel", "")
    rows = [f"{scene.job(s)}|PENDING|1:0|" for s in ("tokenize", "pack", "train", "perplexity")]
    lost = [f"{workers.id}_0|FAILED|1:0|node1", f"{sentinel.id}|CANCELLED|0:0|"]
    scene.answers.say("sacct", "\n".join([*rows, *lost, ""]))
    scene.queue(tokenize="PENDING", pack="PENDING", train="PENDING", perplexity="PENDING")
    assert scene.start() == ("started", 2)


def test_what_a_node_could_not_start_is_submitted_anew(scene: Scene) -> None:
    scene.publish(*STAGES[:5])
    scene.start()
    train, perplexity = scene.job("train"), scene.job("perplexity")
    scene.answers.say("sacct", f"{train}|PENDING|0:0|\n{perplexity}|PENDING|0:0|\n")
    held = f"{train}|PENDING||{LAUNCH_FAILED}|x\n{perplexity}|PENDING||Dependency|x\n"
    scene.answers.say("squeue", held)
    status = run_status(scene.run, scene.store, observe(scene.run)).to_json()["stages"]
    assert LAUNCH_FAILED in next(s["job"] for s in status if s["name"] == "train")
    assert scene.start() == ("started", 3)
    assert {train, perplexity} <= set(scene.asked("scancel")[0].split())


def test_workers_that_left_the_queue_are_replaced(scene: Scene) -> None:
    scene.publish(*STAGES[:3])
    resources = {"tokenize": {"nodes": 5, "max_workers": 5}}
    scene.run.move(cluster(scene.store.storage.url, backend="slurm", resources=resources))
    scene.start()
    workers = scene.jobs("workers", scene.id("tokenize"))[0].id
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
    scene.start()
    tokenize, known = scene.id("tokenize"), len(scene.asked("sbatch"))
    (folder,) = scene.run.storage.local_root.glob("submissions/0001/tokenize*-workers")
    script = (folder / "script.sh").read_text()
    comment = next(line for line in script.splitlines() if "--comment" in line).split("'")[1]
    scene.answers.say("squeue", f"77|PENDING||None|{comment}-2\n")
    assert scene.executor.replace_workers(scene.run, scene.store, tokenize) == 0
    assert len(scene.asked("sbatch")) == known
    assert scene.jobs("workers", tokenize)[-1].id == "77"
