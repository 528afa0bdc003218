"""When a run is resumed by itself, and when not."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from orchestrator.control.executor import Started
from orchestrator.control.slurm.job_states import work_left
from orchestrator.control.slurm.jobs import SENTINEL
from orchestrator.control.slurm.other_runs import LATER
from orchestrator.control.slurm.sentinel import (
    persist,
    require_own_work,
    resume,
    see_to,
    settled,
    stage_refusals,
)
from orchestrator.errors import BackendError, RequestError
from orchestrator.ledger import lease as leases
from orchestrator.ledger.status import JobState
from orchestrator.ledger.submission import Submissions
from tests.unit.orchestrator.backends.test_slurm_allocation import AROUND
from tests.unit.orchestrator.control.slurm.scene import COUNTING, NUM_JOBS, STAGES, Scene
from tests.unit.orchestrator.recipes import cluster
from tests.unit.orchestrator.scheduler import Answers
from tests.unit.source import ROOT


def test_a_sentinel_resumes_and_knows_when_not_to(scene: Scene) -> None:
    scene.start()

    def hopeless() -> dict[str, str]:
        return stage_refusals(scene.run, scene.executor.observe([scene.run])["small"])

    scene.books(corpus="FAILED", codebook="CANCELLED")
    assert hopeless() == {}
    attempt = scene.run.begin_attempt(scene.id("corpus"))
    attempt.finish(action="stop", reason="the request is wrong", cause="bad_request")
    assert hopeless() == {scene.id("corpus"): "the request is wrong"}
    scene.run.request_cancel("train")
    assert hopeless()[scene.id("train")] == "somebody cancelled it"
    assert scene.refusal(1) == ""
    scene.run.request_cancel(None)
    assert scene.refusal(1) == "somebody cancelled it"
    submissions = Submissions(scene.run.storage)
    submissions.begin("user", {})
    assert scene.refusal(1) == "it was submitted again since"
    assert scene.refusal(2) == ""
    submissions.begin("sentinel", {})  # and died before it had submitted anything
    assert scene.refusal(2) == ""
    scene.run.move(cluster(scene.store.storage.url, backend="local"))
    assert scene.refusal(2) == "it has moved to another cluster"


def test_what_was_stopped_before_the_user_resumed_is_resumed(scene: Scene) -> None:
    scene.start()
    scene.books(corpus="FAILED")
    observed = scene.executor.observe([scene.run])["small"]
    attempt = scene.run.begin_attempt(scene.id("corpus"))
    attempt.finish(action="stop", reason="the request is wrong", cause="bad_request")
    assert stage_refusals(scene.run, observed) == {scene.id("corpus"): "the request is wrong"}
    Submissions(scene.run.storage).begin("sentinel", {})
    assert stage_refusals(scene.run, observed) != {}
    Submissions(scene.run.storage).begin("user", {})  # who has mended it
    assert stage_refusals(scene.run, observed) == {}


def test_a_sentinel_gives_up_on_a_run_that_gets_no_further(scene: Scene) -> None:
    scene.start()
    submissions, plan = Submissions(scene.run.storage), scene.run.plan()

    def resumed() -> str:
        number = submissions.begin("sentinel", work_left(plan, scene.store))
        submissions.close(number)
        return scene.refusal(number)

    assert resumed() == ""
    scene.publish("corpus")
    assert resumed() == "", "the one before got something done"
    shards = scene.store.artifact("tokenize", plan.instance(scene.id("tokenize")).key).storage
    shards.create("shards/a.parquet", b"")
    assert resumed() == "", "and so did this"
    assert resumed().startswith("it was resumed in vain often enough (slurm.max_resumes)")


def test_a_sentinel_leaves_a_run_alone_that_has_spent_what_it_may(scene: Scene) -> None:
    scene.start()
    limits = {"prices": {"cpu_hour": 1.0}, "limits": {"max_price": 2}}
    scene.run.move(cluster(scene.store.storage.url, backend="slurm", **limits))
    attempt = scene.run.begin_attempt(scene.id("corpus"), started_at=0.0, gpus=0, price_per_h=1.0)
    attempt.finish(ended_at=3600.0, action="resume")
    assert scene.refusal(1) == ""
    again = scene.run.begin_attempt(scene.id("corpus"), started_at=0.0, gpus=0, price_per_h=1.0)
    again.finish(ended_at=3600.0, action="resume")
    assert scene.refusal(1) == "limits.max_price: 2 of 2 USD spent"


def refusing_twice(scene: Scene, said: str) -> None:
    """sbatch refuses twice, then accepts."""
    tries = scene.answers.folder / "tries"
    accepting = COUNTING.format(folder=scene.answers.folder).splitlines()
    refusal = f"{{ echo 'sbatch: error: {said}' >&2; exit 1; }}"
    refusing = [f"echo x >> {tries}", f"[ $(wc -l < {tries}) -gt 2 ] || {refusal}"]
    sbatch = scene.answers.folder / "sbatch"
    sbatch.write_text("\n".join([accepting[0], *refusing, *accepting[1:], ""]))


def test_a_sentinel_tries_again(scene: Scene) -> None:
    refusing_twice(scene, "Invalid qos specification")
    started = resume(scene.run, scene.store, scene.executor, {}, try_again_s=0.01)
    assert (started.outcome, started.num_jobs) == ("started", NUM_JOBS)
    newest = Submissions(scene.run.storage).all()[-1]
    assert (newest.by, newest.is_whole) == ("sentinel", True)


@pytest.mark.parametrize(
    "said", ["QOSMaxSubmitJobPerUserLimit", "Unable to contact slurm controller"]
)
def test_a_sentinel_waits_for_what_passes(scene: Scene, said: str) -> None:
    """Longer than for what may be wrong for good."""
    refusing_twice(scene, said)

    def act() -> Started:
        return resume(scene.run, scene.store, scene.executor, {}, timeout_s=0.0)

    assert persist(act, time.monotonic() - 1) is None, "the walltime is over"
    started = persist(act, time.monotonic() + 60, pause_s=0.01)
    assert started is not None
    assert started.num_jobs == NUM_JOBS


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE])
def test_a_store_that_is_full_or_away_is_waited_for(number: int) -> None:
    tries = iter([OSError(number, "no"), OSError(number, "no"), None])

    def act() -> str:
        if error := next(tries):
            raise error
        return "done"

    assert persist(act, time.monotonic() + 60, pause_s=0.01) == "done"


def test_a_full_store_is_waited_for(
    tmp_path: Path, answers: Answers, caplog: pytest.LogCaptureFixture
) -> None:
    """A real one, that somebody makes room in after a while; nothing was submitted before."""
    store = tmp_path / "store"
    store.mkdir()
    words = ("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(store))
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        scene = Scene(tmp_path, answers)
        scene.start()
        waiting = dict.fromkeys(STAGES[1:], "PENDING")
        scene.books(corpus="FAILED", **waiting), scene.queue(**waiting)
        known, filling = len(scene.asked("sbatch")), store / "filling"
        fill(filling)
        ends_at = time.monotonic() + 60
        act = partial(see_to, scene.store, scene.run, scene.executor, 1, {}, ends_at)
        assert persist(act, time.monotonic() + 0.5, pause_s=0.1) is None
        assert "No space left on device" in caplog.text
        assert len(scene.asked("sbatch")) == known
        threading.Timer(0.5, filling.unlink).start()
        assert persist(act, time.monotonic() + 60, pause_s=0.1)
        assert len(scene.asked("sbatch")) > known
    finally:
        subprocess.run(["umount", "-l", str(store)], check=True)


def fill(path: Path) -> None:
    """Take all the room there is."""
    with suppress(OSError), path.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()


def test_what_does_not_pass_is_raised_at_once() -> None:
    def act() -> None:
        raise RequestError("no such run")

    with pytest.raises(RequestError, match="no such run"):
        persist(act, time.monotonic() + 60)


def test_a_sentinel_whose_walltime_is_over_comes_back_later(scene: Scene) -> None:
    """Here the store cannot be written to, and the scheduler has nothing to say of a failure."""
    scene.start()
    scene.books(corpus="FAILED")
    shutil.rmtree(folder := scene.run.storage.local_root / "submission-lease")
    folder.touch()
    scene.answers.say("scontrol", "JobId=12 JobState=RUNNING\n")
    words = ("--store", scene.store.storage.url, "--run", scene.run.name, "--submission", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", SENTINEL, *words, "--walltime-min", "1"],
        env={**os.environ, **AROUND, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "put back into the queue" in line:
            break
    process.kill()
    process.wait()
    process.stderr.close()
    assert any("looks again later" in line for line in lines), lines
    update = f"scontrol update JobId=12 {LATER}"
    assert scene.asked("scontrol")[-2:] == ["scontrol requeue 12", update]


def test_a_sentinel_waits_for_another_run_where_no_job_may_be_requeued(scene: Scene) -> None:
    corpus = scene.run.plan().instance(scene.id("corpus"))
    storage = scene.store.artifact(corpus.stage, corpus.key).storage
    with leases.held(storage, holder="other/corpus/0001", timeout_s=60):
        require_own_work(scene.store, scene.run, {})
        spec = cluster(scene.store.storage.url, backend="slurm", slurm={"requeue": False})
        scene.run.move(spec)
        with pytest.raises(BackendError, match="another run works on what is left"):
            require_own_work(scene.store, scene.run, {})
    require_own_work(scene.store, scene.run, {})


def test_a_sentinel_does_not_try_for_ever(scene: Scene) -> None:
    scene.answers.say("sbatch", "sbatch: error: Invalid account\n", code=1)
    with pytest.raises(RequestError, match="Invalid account"):
        resume(scene.run, scene.store, scene.executor, {}, timeout_s=2.0, try_again_s=0.02)
    assert len(scene.asked("sbatch")) >= 2


def test_a_sentinel_waits_until_the_books_show_what_has_failed(scene: Scene) -> None:
    scene.start()
    scene.queue(corpus="RUNNING")

    def fail() -> None:
        scene.queue()
        scene.books(corpus="FAILED")

    later = threading.Timer(0.5, fail)
    later.start()
    observed = settled(scene.run, scene.executor, timeout_s=60, look_every_s=0.05)
    later.join()
    assert observed.jobs[scene.id("corpus")].state is JobState.FAILED


def test_a_sentinel_goes_on_with_what_is_known_when_the_books_stay_silent(scene: Scene) -> None:
    scene.start()
    scene.queue(corpus="RUNNING")
    observed = settled(scene.run, scene.executor, timeout_s=0.05, look_every_s=0.01)
    assert observed.jobs[scene.id("corpus")].state is JobState.RUNNING
    for command in ("sacct", "squeue"):
        scene.answers.say(command, f"{command}: error: no route\n", code=1)
    with pytest.raises(BackendError, match="no route"):
        settled(scene.run, scene.executor, timeout_s=0.05, look_every_s=0.01)


@pytest.mark.parametrize("silent", [("sacct", "squeue"), ("sacct", "squeue", "scontrol")])
@pytest.mark.parametrize("left_s", [0.2, -60.0])
def test_a_sentinel_waits_for_no_answer_beyond_its_time(
    scene: Scene, silent: tuple[str, ...], left_s: float
) -> None:
    """It asks for its place in the queue before that, which a job that was killed cannot."""
    scene.start()
    for command in silent:
        scene.answers.say(command, f"{command}: error: no route\n", code=1)
    began, ends_at = time.monotonic(), time.monotonic() + left_s
    act = partial(see_to, scene.store, scene.run, scene.executor, 1, {}, ends_at)
    assert persist(act, ends_at) is None
    assert time.monotonic() - began < 20


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
    scene.start()
    scene.books(**words)
    found = stage_refusals(scene.run, scene.executor.observe([scene.run])["small"])
    assert found == {scene.id(s): "its job was cancelled with scancel" for s in by_hand}


def test_workers_that_are_submitted_alone_bring_a_sentinel_and_are_those_that_count(
    scene: Scene,
) -> None:
    scene.publish(*STAGES[:3])
    scene.start()
    tokenize = scene.id("tokenize")
    (workers,), (sentinel,) = scene.jobs("workers", tokenize), scene.jobs("sentinel", "")
    waiting = ("tokenize", "pack", "train", "perplexity")
    rows = [*(f"{scene.job(s)}|PENDING|1:0|" for s in waiting), f"{workers.id}_0|FAILED|1:0|n1"]
    scene.answers.say("sacct", "\n".join([*rows, f"{sentinel.id}|PENDING|0:0|", ""]))
    queued = [scene.job(stage) for stage in waiting] + [sentinel.id]
    scene.answers.say("squeue", "".join(f"{job}|PENDING||Dependency|x\n" for job in queued))
    assert scene.start() == ("started", 2)
    assert sentinel.id in scene.asked("scancel")[0].split(), "the run is the new one's"
    scene.queue()
    replace = scene.executor.replace_workers
    for _ in range(3):
        assert replace(scene.run, scene.store, tokenize) == 1
    names = [job.name for job in scene.jobs("workers", tokenize)]
    assert names == [f"{tokenize}-workers{n}" for n in ("", "-2", "-3", "-4")]
