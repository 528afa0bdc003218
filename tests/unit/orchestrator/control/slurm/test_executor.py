"""A run on Slurm: what is submitted, kept and cleared, and what is known without it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.backends.slurm_reasons import LAUNCH_FAILED
from orchestrator.cli.arguments import started_line
from orchestrator.cli.watch import ending_lines
from orchestrator.control.code_snapshot import FORMAT
from orchestrator.control.executor import observe
from orchestrator.control.request import move
from orchestrator.control.slurm.sentinel import resume
from orchestrator.errors import BackendError, RequestError
from orchestrator.ledger.run import to_yaml
from orchestrator.ledger.status import RunStatus, run_status
from orchestrator.ledger.storage import to_json
from tests.unit.orchestrator.control.slurm.scene import COUNTING, NUM_JOBS, STAGES, Scene
from tests.unit.orchestrator.recipes import cluster


def test_everything_is_submitted_once(scene: Scene) -> None:
    assert scene.start() == ("started", NUM_JOBS)
    scene.queue_all()
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
    scene.queue_all()
    with (scene.answers.folder / "squeue.txt").open("a") as queue:
        queue.write(f"77|PENDING||Dependency|/copy/script.sh|{comment}\n")
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
    assert len(cancelled.split()) == 1 + 4, "workers come last"
    status = run_status(scene.run, scene.store, observe(scene.run))
    assert (status.state, status.cause) == ("failed", "bad_request")
    assert re.search(r"small/pack.*: no; look at the cluster file's slurm", status.refusal)
    assert status.refusal in run_line(status), "it is shown"
    sbatch.write_text(COUNTING.format(folder=scene.answers.folder))
    assert scene.start() == ("started", NUM_JOBS), "and resuming goes on"
    assert run_status(scene.run, scene.store, observe(scene.run)).refusal == ""


def run_line(status: RunStatus) -> str:
    return "\n".join(ending_lines(status))


LIMITED = """\
#!/bin/sh
echo "sbatch $*" >> {folder}/asked
size=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
used=$(cat {folder}/used 2>/dev/null || echo 0)
used=$((used + ${{size:-0}} + 1))
if [ "$used" -gt {room} ]; then
  echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2
  echo "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy" \\
    "(job submit limit, user's size and/or time limits)" >&2
  exit 1
fi
echo $used > {folder}/used
echo "Submitted batch job $(grep -c ^sbatch {folder}/asked)"
"""


def many_workers(scene: Scene, room: int, nodes: int = 30, **slurm: object) -> None:
    """A run of many workers at a site with so many places in the queue."""
    scene.publish(*STAGES[:3])
    resources = {"tokenize": {"nodes": nodes, "max_workers": nodes}}
    spec = cluster(scene.store.storage.url, backend="slurm", resources=resources, slurm=slurm)
    scene.run.move(spec)
    sbatch = scene.answers.folder / "sbatch"
    sbatch.write_text(LIMITED.format(folder=scene.answers.folder, room=room))


def arrays(scene: Scene) -> list[str]:
    """The arrays of all workers' jobs that were recorded, by name."""
    jobs = scene.jobs("workers", scene.id("tokenize"))
    folder = scene.run.storage.local_root
    texts = [(folder / f"submissions/0001/{job.name}/script.sh").read_text() for job in jobs]
    lines = [[ln for ln in text.splitlines() if "--array" in ln] for text in texts]
    return [line[0].removeprefix("#SBATCH --array=") if line else "one" for line in lines]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(1001, ["0-29%30"]), (11, ["0-9%10"] * 3), (14, ["0-12%13", "0-12%13", "0-3%4"])],
)
def test_arrays_end_where_the_site_says(scene: Scene, limit: int, expected: list[str]) -> None:
    scene.answers.say("scontrol", f"MaxArraySize            = {limit}\n")
    many_workers(scene, room=1000)
    assert scene.start() == ("started", 5 + len(expected))
    assert arrays(scene) == expected


def test_without_arrays_every_worker_is_a_job(scene: Scene) -> None:
    scene.answers.say("scontrol", "MaxArraySize            = 0\n")
    many_workers(scene, room=1000, nodes=3)
    assert scene.start() == ("started", 5 + 3)
    assert arrays(scene) == ["one"] * 3
    assert scene.executor.replace_workers(scene.run, scene.store, scene.id("tokenize")) == 1


@pytest.mark.parametrize(("room", "there"), [(5 + 8, 7), (5 + 3, 3), (5, 0)])
def test_as_many_workers_as_there_is_room_for(scene: Scene, room: int, there: int) -> None:
    """The others are asked for by the head, as far as there is room by then."""
    many_workers(scene, room=room)
    started = scene.executor.start(scene.run, scene.store)
    tokenize = scene.id("tokenize")
    assert started.remarks == (
        f"{tokenize}: {there} of 30 workers fit into this site's limit on jobs in the queue; its "
        "head asks for more as room appears",
    )
    assert started_line(started).startswith(f"{5 + (there > 0)} jobs submitted; {tokenize}: ")
    assert arrays(scene) == ([f"0-{there - 1}%{there}"] if there else [])
    for job in scene.jobs("workers", tokenize):
        scene.answers.say("squeue", f"{job.id}|RUNNING|n1|None|x\n" * there)
    (scene.answers.folder / "used").write_text(f"{room - 4}\n")
    replaced = scene.executor.replace_workers(scene.run, scene.store, tokenize)
    assert 2 <= replaced <= 4, "half of what is missing, and half of that"


@pytest.mark.parametrize("room", [1, 4])
def test_too_little_room_for_the_stages_is_a_failure_that_resuming_mends(
    scene: Scene, room: int
) -> None:
    many_workers(scene, room=room)
    with pytest.raises(RequestError, match="submit again when there are fewer in the queue"):
        scene.start()
    status = run_status(scene.run, scene.store, observe(scene.run))
    assert status.state == "failed"
    assert "job submit limit" in status.refusal
    many_workers(scene, room=1000)
    (scene.answers.folder / "used").unlink()
    assert scene.start() == ("started", 6)


def test_a_large_run_is_few_questions(scene: Scene) -> None:
    """Jobs, arrays and questions do not grow with the workers."""
    many_workers(scene, room=10_000, nodes=900)
    scene.start()
    commands = Counter(line.split()[0] for line in scene.answers.asked)
    assert commands == {"sbatch": 6, "scontrol": 2}


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
    assert "--comment=" in script
    rewritten = "site: speech\nbilled to 9|RUNNING|nobody"
    scene.answers.say("squeue", f"77|PENDING||None|{folder}-2/script.sh|{rewritten}\n")
    assert scene.executor.replace_workers(scene.run, scene.store, tokenize) == 0
    assert len(scene.asked("sbatch")) == known
    assert scene.jobs("workers", tokenize)[-1].id == "77"


def test_what_was_cancelled_is_known_when_nobody_else_knows_it(scene: Scene) -> None:
    """At a site without books jobs are forgotten some seconds after their end."""
    scene.start()
    scene.queue_all()
    assert scene.executor.observe([scene.run])["small"].is_alive
    scene.executor.cancel(scene.run, None)
    observed = scene.executor.observe([scene.run])["small"]
    assert {s.state for s in observed.by_id.values()} == {"cancelled"}
    assert len(observed.by_id) == NUM_JOBS, "workers and sentinel too"
    assert not observed.is_alive
    assert run_status(scene.run, scene.store, observed).state == "cancelled"
    assert "obeyed_at" in scene.run.cancel_requests()[0]
    assert scene.start() == ("started", NUM_JOBS), "and resuming goes on at once"


def test_what_waits_for_a_cancelled_stage_has_ended_with_it(scene: Scene) -> None:
    """Slurm cancels it, and without books nobody says so."""
    scene.publish(*STAGES[:4])
    scene.start()
    scene.queue_all()
    scene.executor.cancel(scene.run, "pack")
    observed = scene.executor.observe([scene.run])["small"]
    assert {s.state for s in observed.jobs.values()} == {"cancelled"}
    assert not observed.is_alive
    assert scene.start() == ("started", 4)


def test_what_a_submission_leaves_behind_is_known_to_be_cancelled(scene: Scene) -> None:
    scene.publish(*STAGES[:4])
    scene.start()
    scene.queue_all()
    pack = scene.job("pack")
    scene.answers.say("sacct", f"{pack}|FAILED|1:0|n1\n")
    scene.answers.say("squeue", (scene.answers.folder / "squeue.txt").read_text().split("\n", 1)[1])
    started = resume(scene.run, scene.store, scene.executor, [scene.id("pack")])
    assert started.outcome == "hopeless"
    scene.queue()
    assert not scene.executor.observe([scene.run])["small"].is_alive


def test_resuming_says_what_it_waits_for_and_until_when(scene: Scene) -> None:
    scene.start()
    scene.queue()
    says = (
        r"small: corpus-\w+: job 1 is unknown to the scheduler since \d\d:\d\d:\d\d; it counts as "
    )
    says += r"lost from .* on \(slurm.missing_timeout_s\), and so 6 others; resume after that, or "
    with pytest.raises(BackendError, match=says + "`orchestrator cancel small`"):
        scene.start()
    status = run_status(scene.run, scene.store, observe(scene.run))
    assert (status.state, status.stages[0].state) == ("unknown", "unknown")
    assert not status.state.is_final, "watching goes on"
    scene.run.storage.replace("code.json", to_json({"format": FORMAT}))
    with pytest.raises(RequestError, match=r"is unknown to the .*cancel small` before it moves"):
        move(scene.run, other_cluster(scene))
    scene.executor.cancel(scene.run, None)
    assert scene.start() == ("started", NUM_JOBS), "whoever knows better may say so"


def other_cluster(scene: Scene) -> Path:
    """A cluster file that the run has not gone on with."""
    where = cluster(scene.store.storage.url, backend="slurm", slurm={"max_resumes": 7})
    path = scene.answers.folder / "other.yaml"
    path.write_bytes(to_yaml(where))
    return path


def test_a_held_job_is_said_to_be_held(scene: Scene) -> None:
    scene.start()
    scene.queue_all()
    queue = scene.answers.folder / "squeue.txt"
    queue.write_text(queue.read_text().replace("1|PENDING||Priority", "1|PENDING||JobHeldAdmin", 1))
    started = scene.executor.start(scene.run, scene.store)
    words = "an administrator holds it; ask them, it starts when they release it"
    assert started_line(started) == f"already running; {scene.id('corpus')}: {words}"
    status = run_status(scene.run, scene.store, observe(scene.run))
    assert status.stages[0].waits == words
    assert status.stages[0].state == "queued"


def test_what_comes_from_the_shell_is_said(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "debug")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "1")
    words = "from this shell, as the cluster file does not say it: SBATCH_PARTITION=debug"
    assert scene.executor.start(scene.run, scene.store).remarks == (words,)
    assert list(scene.executor.remarks(scene.run.plan(), scene.run.cluster())) == [words]
    scene.run.move(cluster(scene.store.storage.url, backend="slurm", slurm={"partition": "gpu"}))
    assert list(scene.executor.remarks(scene.run.plan(), scene.run.cluster())) == []
