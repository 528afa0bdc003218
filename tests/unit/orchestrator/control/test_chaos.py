"""A drill on a training: whom it strikes, what it refuses, and what it makes of the aftermath."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.control.chaos import Drill, Fault, Outcome
from orchestrator.control.code_snapshot import FORMAT
from orchestrator.errors import RequestError, RunFailedError
from orchestrator.ledger import checkpoints
from orchestrator.ledger.artifact import Artifact
from orchestrator.ledger.attempt import FAULT_ORDER, AttemptFolder
from orchestrator.ledger.checkpoints import FileEntry, Manifest
from orchestrator.ledger.lease import Process, acquire
from orchestrator.ledger.storage import Storage, to_json
from tests.unit.orchestrator.control.local.scene import Scene

PHASES = {"start_ranks": 2.0, "load": 1.0, "first_step": 0.5}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A run with a supervisor of this process, and no attempt yet."""
    scene = Scene(tmp_path)
    scene.run.begin_supervisor(process=Process.current().__dict__)
    return scene


def attempt_of(scene: Scene, step: int, resumed_from: str = "", **live: Any) -> AttemptFolder:
    """The next attempt of the training, two ranks at a step."""
    (train,) = (i for i in scene.run.plan().instances if i.stage == "train")
    attempt = scene.run.begin_attempt(train.id, process=Process.current().__dict__)
    told = {"step": step, "phases": PHASES, "resumed_from": resumed_from, "refused": [], **live}
    attempt.storage.replace("live.json", to_json(told))
    for rank in range(2):
        beat = {"process": {"host": f"node{rank}/boot"}, "ticks": step}
        attempt.storage.replace(f"beats/rank-{rank:05d}.json", to_json(beat))
    return attempt


def line(step: int, at: float) -> bytes:
    return to_json({"step": step, "at": at, "step_s": 0.1, "stall_s": 0.0}).replace(b"\n", b"")


def commit(out: Storage, step: int, **files: bytes) -> Manifest:
    """A checkpoint of the first attempt with these files."""
    name = checkpoints.name_of(step, 1)
    for path, data in files.items():
        out.create(f"{checkpoints.FOLDER}/{name}/{path}", data)
    manifest = Manifest(
        step=step,
        lease_n=1,
        world_size=2,
        zero_stage=1,
        cursor=step,
        sample_hash="",
        files={p: FileEntry(size=len(d), sha256="0" * 64) for p, d in files.items()},
        metrics=(),
    )
    checkpoints.commit(out, manifest)
    return manifest


def drill_of(scene: Scene, fault: Fault = "rank", stage: str | None = None) -> Drill:
    return Drill(scene.run, scene.store, fault, stage)


def out_of(scene: Scene) -> Artifact:
    (train,) = (i for i in scene.run.plan().instances if i.stage == "train")
    return scene.store.artifact(train.stage, train.key)


def test_the_target_is_the_training_that_makes_steps(scene: Scene) -> None:
    attempt_of(scene, 40)
    drill = drill_of(scene)
    (train,) = (i for i in scene.run.plan().instances if i.stage == "train")
    assert (drill.instance, drill.step) == (train.id, 40)
    assert drill_of(scene, stage="train").instance == drill.instance
    with pytest.raises(RequestError, match="no training has made a step yet"):
        drill_of(scene, stage="tokenize")


def test_a_training_before_its_first_step_or_after_its_end_is_no_target(scene: Scene) -> None:
    begins = attempt_of(scene, 0, phases={"start_ranks": 2.0})
    with pytest.raises(RequestError, match="no training has made a step yet"):
        drill_of(scene)
    begins.finish(action="resume", cause="killed", reason="")
    ended = attempt_of(scene, 9)
    ended.finish(action="stop", cause="killed", reason="")
    with pytest.raises(RequestError, match="or all are done"):
        drill_of(scene)


def test_a_run_without_a_supervisor_is_resumed_first(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    attempt_of(scene, 40)
    with pytest.raises(RequestError, match="`orchestrator resume small` first"):
        drill_of(scene)


@pytest.mark.parametrize(
    ("fault", "order"),
    [
        ("rank", {"kind": "rank", "rank": 1}),
        ("hang", {"kind": "hang", "rank": 1}),
        ("driver", {"kind": "driver"}),
        ("node", {"kind": "node", "node": "node1"}),
    ],
)
def test_an_order_names_its_victim(scene: Scene, fault: Any, order: dict[str, Any]) -> None:
    attempt = attempt_of(scene, 40)
    before = time.time()
    drill = drill_of(scene, fault)
    drill.strike(1)
    assert before <= drill.struck_at <= time.time()
    assert attempt.storage.read_json(FAULT_ORDER) == order


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("spot", "--kill spot is for nodes of a Ray cluster; use --kill node"),
        ("head", "--kill head is for a Ray cluster; use --kill node"),
    ],
)
def test_some_faults_are_for_ray_clusters(scene: Scene, fault: Any, says: str) -> None:
    attempt_of(scene, 40)
    with pytest.raises(RequestError, match=says):
        drill_of(scene, fault)


@pytest.mark.parametrize(
    ("fault", "order"),
    [
        ("spot", {"kind": "spot", "drained": "node1"}),
        ("node", {"kind": "node", "rank": 1}),
        ("rank", {"kind": "rank", "rank": 1}),
    ],
)
def test_on_a_ray_cluster_a_rank_knows_which_node_is_its_own(
    tmp_path: Path, fault: Any, order: dict[str, Any]
) -> None:
    scene = Scene(tmp_path, backend="ray")
    scene.run.begin_supervisor(process=Process.current().__dict__)
    attempt = attempt_of(scene, 40)
    drill_of(scene, fault).strike(1)
    assert attempt.storage.read_json(FAULT_ORDER) == order


def test_a_head_is_killed_on_the_head_alone(tmp_path: Path) -> None:
    scene = Scene(tmp_path, backend="ray")
    elsewhere = {**Process.current().__dict__, "host": "h7/boot"}
    scene.run.begin_supervisor(process=elsewhere)
    attempt_of(scene, 40)
    lease = {"number": 1, "holder": "small", "process": elsewhere, "heartbeat_at": time.time()}
    scene.run.supervision.create_json("lease/000001.json", lease)
    with pytest.raises(RequestError, match="this machine is none; run it on h7"):
        drill_of(scene, "head")


def test_a_supervisor_that_is_no_job_of_a_head_is_not_killed(tmp_path: Path) -> None:
    scene = Scene(tmp_path, backend="ray")
    scene.run.begin_supervisor(process=Process.current().__dict__)
    attempt_of(scene, 40)
    drill = drill_of(scene, "head")
    with pytest.raises(RequestError, match="the supervisor is no job of a head here"):
        drill.strike(0)


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_that_is_not_there_is_not_struck(scene: Scene, rank: int) -> None:
    attempt = attempt_of(scene, 40)
    with pytest.raises(RequestError, match=r"this training has ranks 0\.\.1"):
        drill_of(scene).strike(rank)
    assert not attempt.storage.exists(FAULT_ORDER)


def test_one_drill_at_a_time(scene: Scene) -> None:
    attempt_of(scene, 40)
    drill_of(scene, "rank").strike(0)
    with pytest.raises(RequestError, match="another drill"):
        drill_of(scene, "hang").strike(0)


def test_a_node_takes_the_supervisor_on_it_along(scene: Scene) -> None:
    attempt = attempt_of(scene, 40)
    (supervisor,) = scene.run.supervisors()
    here = {"process": {"host": supervisor.started["process"]["host"]}}
    attempt.storage.replace("beats/rank-00000.json", to_json(here))
    drill_of(scene, "node").strike(0)
    assert supervisor.storage.read_json(FAULT_ORDER)["kind"] == "node"


def test_a_byte_is_flipped_once_the_attempt_has_ended(scene: Scene) -> None:
    attempt = attempt_of(scene, 40)
    drill, out = drill_of(scene, "byte"), out_of(scene).storage
    commit(out, 20, old=b"old!")
    commit(out, 30, large=bytes(9), small=bytes(4), small_too=bytes(4))
    end = threading.Timer(0.3, attempt.finish, kwargs={"action": "resume", "cause": "killed"})
    end.start()
    drill.strike(0)
    assert attempt.end is not None
    folder = out.at(checkpoints.FOLDER)
    assert sorted(folder.read_bytes(f"{checkpoints.name_of(30, 1)}/small")) == [0, 0, 0, 1]
    assert folder.read_bytes(f"{checkpoints.name_of(30, 1)}/large") == bytes(9)
    assert folder.read_bytes(f"{checkpoints.name_of(30, 1)}/small_too") == bytes(4)
    assert folder.read_bytes(f"{checkpoints.name_of(20, 1)}/old") == b"old!"


def recovered(struck_at: float, drill: Drill, **options: Any) -> Outcome:
    drill.struck_at = struck_at
    return drill.await_recovery(5, **options)


def test_what_a_fault_cost(scene: Scene) -> None:
    struck = attempt_of(scene, 40)
    drill, at = drill_of(scene), time.time() - 100
    struck.storage.create("metrics-0001.jsonl", line(41, at - 1) + b"\n" + line(42, at) + b"\n")
    struck.finish(action="resume", cause="worker_lost", reason="rank 1 was lost")
    ended_at = struck.end["ended_at"]
    after = attempt_of(scene, 31, checkpoints.name_of(30, 1), refused=["a byte differs"])
    after.storage.create("metrics-0001.jsonl", line(31, ended_at + 10.0) + b"\n")
    outcome = recovered(at, drill)
    assert (outcome.cause, outcome.attempt, outcome.step) == ("worker_lost", 1, 42)
    assert outcome.steps_lost == 12
    assert outcome.resumed_from == checkpoints.name_of(30, 1)
    assert outcome.refused == ("a byte differs",)
    assert outcome.noticed_s == pytest.approx(ended_at - at)
    assert outcome.restarted_s == pytest.approx(10.0 - sum(PHASES.values()))
    assert outcome.recovered_s == pytest.approx(ended_at + 10.0 - at)
    assert outcome.phases_s == PHASES


def test_a_checkpoint_newer_than_the_last_recorded_step_loses_nothing(scene: Scene) -> None:
    struck = attempt_of(scene, 40)
    drill = drill_of(scene)
    struck.finish(action="resume", cause="killed", reason="")
    attempt_of(scene, 45, checkpoints.name_of(44, 1))
    assert recovered(time.time(), drill).steps_lost == 0


def test_an_attempt_that_nobody_ended_was_lost_with_its_node(scene: Scene) -> None:
    attempt_of(scene, 40)
    drill = drill_of(scene)
    attempt_of(scene, 41, checkpoints.name_of(40, 1))
    assert recovered(time.time(), drill).cause == "node_lost"


def test_a_run_that_gives_up_is_not_waited_for(scene: Scene) -> None:
    struck = attempt_of(scene, 40)
    drill = drill_of(scene)
    struck.finish(action="stop", cause="worker_lost", reason="too often")
    with pytest.raises(RunFailedError, match="gave up after the fault: too often"):
        recovered(time.time(), drill)


def test_a_training_that_ended_first_cannot_be_struck(scene: Scene) -> None:
    attempt_of(scene, 40)
    drill = drill_of(scene)
    out_of(scene).publish(inputs={}, facts={}, producer={})
    with pytest.raises(RequestError, match="ended before the fault could act"):
        recovered(time.time(), drill)


def test_no_new_step_in_time_is_a_failure(scene: Scene) -> None:
    attempt_of(scene, 40)
    with pytest.raises(RunFailedError, match="no new step within 1 s"):
        drill_of(scene).await_recovery(0.6)


def test_a_run_that_nobody_supervises_any_more_is_resumed(scene: Scene) -> None:
    """Another shell does so just then: its supervisor is about to announce itself."""
    attempt_of(scene, 40)
    drill = drill_of(scene)
    scene.run.storage.replace("code.json", to_json({"format": FORMAT}))
    (supervisor,) = scene.run.supervisors()
    supervisor.finish(state="failed", cause="node_lost", reason="")
    held = acquire(scene.run.supervision, holder="another shell's", timeout_s=60)
    announce = partial(scene.run.begin_supervisor, process=Process.current().__dict__)
    threading.Timer(1.0, announce).start()
    outcome = recovered(
        time.time() - 10,
        drill,
        on_resume=lambda: attempt_of(scene, 41, checkpoints.name_of(40, 1)),
    )
    assert outcome.steps_lost == 0
    held.release()
