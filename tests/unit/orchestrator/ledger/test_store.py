"""What a store says is there, and what verification says about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import BackendError
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.store import Store, require_usable
from orchestrator.ledger.verify import verify
from orchestrator.plan.planner import Found, Instance, Plan, make_plan
from orchestrator.plan.stages import Facts
from tests.unit.orchestrator import trainings
from tests.unit.orchestrator.before import unpack
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe


@pytest.fixture
def store(storage: Storage) -> Store:
    return Store(storage)


@pytest.fixture
def plan() -> Plan:
    return plan_of(recipe())


def stage(plan: Plan, name: str) -> Instance:
    return next(i for i in plan.instances if i.stage == name)


def publish(store: Store, instance: Instance, steps: Sequence[int] = range(1, 13)) -> None:
    """A small artifact of an instance."""
    artifact = store.artifact(instance.stage, instance.key)
    artifact.begin(instance.inputs)
    artifact.storage.create("data.bin", b"0123456789")
    if instance.stage == "train":
        artifact.storage.create("metrics.jsonl", trainings.metric_lines(steps))
    facts = {"num_shards": 3, **trainings.FACTS}
    artifact.publish(inputs=instance.inputs, facts=facts, producer={})


def find(store: Store, instance: Instance) -> Found:
    return store.find({instance.id: f"{instance.stage}/{instance.key}"})[instance.id]


def test_an_empty_store(store: Store, plan: Plan) -> None:
    assert store.runs() == ()
    assert store.inputs_of("train") == ()
    assert find(store, stage(plan, "train")) == Found(complete=False)


def test_an_artifact_lies_under_twelve_digits_of_its_key(store: Store, plan: Plan) -> None:
    key = stage(plan, "pack").key
    assert store.artifact("pack", key).storage.url.endswith(f"artifacts/pack/{key[:12]}")


def test_what_is_complete_is_found_with_its_facts(store: Store, plan: Plan) -> None:
    publish(store, stage(plan, "pack"))
    assert find(store, stage(plan, "pack")) == Found(
        complete=True, facts={"num_shards": 3, **trainings.FACTS}
    )


def test_whole_shards_and_the_newest_checkpoint_are_found(store: Store, plan: Plan) -> None:
    tokenize, train = stage(plan, "tokenize"), stage(plan, "train")
    shards = store.artifact("tokenize", tokenize.key).storage
    for number in range(3):
        shards.create(f"shards/000/{number:06d}.parquet", b"x")
    steps = store.artifact("train", train.key).storage
    for name in ("step-00000005-a0001", "step-00000010-a0002"):
        steps.create(f"checkpoints/{name}/MANIFEST.json", b"{}")
    steps.create("checkpoints/step-00000015-a0002/weights.bin", b"half of it")
    assert find(store, tokenize).shards_done == 3
    assert find(store, train).step == 10


def test_runs_and_inputs_are_listed(store: Store, plan: Plan) -> None:
    publish(store, stage(plan, "pack"))
    RunFolder(store.run_storage("small")).create(plan, recipe(), cluster("s"), {}, {})
    assert store.runs() == ("small",)
    assert store.inputs_of("pack") == (stage(plan, "pack").inputs,)


@pytest.fixture
def run(store: Store, plan: Plan) -> RunFolder:
    run = RunFolder(store.run_storage("small"))
    run.create(plan, recipe(), cluster("s"), {}, {})
    return run


def problems(run: RunFolder, store: Store) -> dict[str, tuple[str, ...]]:
    return {v.instance.split("-")[0]: v.problems for v in verify(run, store) if v.problems}


def test_a_whole_run_verifies(run: RunFolder, store: Store, plan: Plan) -> None:
    for instance in plan.instances:
        publish(store, instance)
    verdicts = list(verify(run, store))
    assert [v.instance for v in verdicts] == [i.id for i in plan.instances]
    assert problems(run, store) == {}
    assert [v.num_files for v in verdicts] == [1, 1, 1, 1, 1, 2, 1, 1]
    assert verdicts[0].num_bytes == 10


def test_what_is_not_complete_says_how_to_finish(run: RunFolder, store: Store) -> None:
    assert set(problems(run, store).values()) == {
        ("not complete; `orchestrator resume` finishes it",)
    }


def test_damage_is_found_where_it_is(run: RunFolder, store: Store, plan: Plan) -> None:
    for instance in plan.instances:
        publish(store, instance)
    damaged = store.artifact("pack", stage(plan, "pack").key).storage
    damaged.replace("data.bin", b"0123456780")
    assert problems(run, store) == {
        "pack": (f"{damaged.url}/data.bin: bytes differ from the manifest's sha256",)
    }


def test_a_manifest_with_other_inputs_is_found(run: RunFolder, store: Store, plan: Plan) -> None:
    for instance in plan.instances:
        publish(store, instance)
    pack = stage(plan, "pack")
    folder = store.artifact("pack", pack.key).storage
    manifest = folder.read_json("MANIFEST.json")
    manifest["inputs"]["version"] += 1
    folder.replace("MANIFEST.json", json.dumps(manifest).encode())
    assert problems(run, store) == {
        "pack": (f"{folder.url}: the manifest's inputs do not make the key {pack.key}",)
    }


@pytest.mark.parametrize("steps", [[*range(1, 12)], [1, 1, *range(2, 13)], [2, 1, *range(3, 13)]])
def test_every_step_is_recorded_once_in_order(
    run: RunFolder, store: Store, plan: Plan, steps: list[int]
) -> None:
    for instance in plan.instances:
        publish(store, instance, steps)
    url = store.artifact("train", stage(plan, "train").key).storage.url
    assert problems(run, store) == {
        "train": (f"{url}/metrics.jsonl: steps are not 1..12, each once",)
    }


def test_a_broken_manifest_is_a_verdict_not_a_crash(
    run: RunFolder, store: Store, plan: Plan
) -> None:
    for instance in plan.instances:
        publish(store, instance)
    store.artifact("pack", stage(plan, "pack").key).storage.replace("MANIFEST.json", b"{")
    assert "not valid JSON" in problems(run, store)["pack"][0]


def test_progress_does_not_fall_when_a_member_of_a_group_is_published(
    store: Store, plan: Plan
) -> None:
    members = [stage(plan, "tokenize"), replace(stage(plan, "tokenize"), id="b", key="b" * 64)]
    for member in members:
        shards = store.artifact("tokenize", member.key).storage
        for n in range(3):
            shards.create(f"shards/000/{n:06d}.parquet", b"x")
    before = store.progress(*members)
    publish(store, members[0])
    assert store.progress(*members) == before + 1 == 7.0


def test_progress_of_a_training_does_not_fall_when_it_is_published(
    store: Store, plan: Plan
) -> None:
    train = stage(plan, "train")
    artifact = store.artifact("train", train.key)
    artifact.storage.create("checkpoints/step-00000012-a0001/MANIFEST.json", b"{}")
    before = store.progress(train)
    artifact.publish(inputs={}, facts={"steps": 12}, producer={})
    assert store.progress(train) == before + 1 == 13.0


def test_of_a_store_of_the_version_before_what_heard_no_audio_is_reused(tmp_path: Path) -> None:
    """The tables of a corpus are others, and with them all that is made of them."""
    store, run = unpack(tmp_path)
    (corpus,) = run.plan().chosen("corpus")
    facts = Facts(listings=corpus.inputs["fields"]["listing"])
    plan = make_plan(run.variants(), facts, found=store.find, known_inputs=store.inputs_of)
    decisions = {i.node: i.decision for i in plan.instances}
    assert decisions == {**dict.fromkeys(decisions, "run"), "encoder": "reuse"}
    reused = {i.id for i in plan.instances if i.decision == "reuse"}
    assert reused < {i.id for i in run.plan().instances}


def test_a_usable_store_keeps_nothing_of_the_trial(storage: Storage) -> None:
    require_usable(storage)
    assert storage.list() == {}


class Forgetful(Storage):
    """A store that takes every write for the first."""

    def create(self, path: str, data: bytes) -> None:
        self.replace(path, data)


def test_a_store_that_overwrites_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="overwrites what must be created once; use a store"):
        require_usable(Forgetful(str(tmp_path)))


@pytest.mark.parametrize("name", ["artifacts", "artifacts/corpus", "runs", "models"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_folder_of_a_store_that_takes_nothing_is_named(
    tmp_path: Path, name: str, kind: str
) -> None:
    """People link artifacts to a larger disk, which is emptied some day."""
    folder = tmp_path / name
    folder.parent.mkdir(exist_ok=True)
    if kind == "file":
        folder.write_bytes(b"")
        said = "is no folder; move it away"
    else:
        folder.symlink_to(tmp_path / "gone")
        said = f"leads to {tmp_path}/gone, which is not there; mount it, or remove it"
    with pytest.raises(BackendError) as raised:
        require_usable(Storage(str(tmp_path)))
    assert str(raised.value) == f"store: {folder}: {said}, or name another store"


@pytest.mark.parametrize("name", ["README.txt", ".DS_Store", ".nfs0000000001", ".snapshot"])
def test_what_is_not_ours_beside_folders_of_stages_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / name).symlink_to(tmp_path / "gone")
    require_usable(Storage(str(tmp_path)))


def test_a_folder_of_somebody_else_is_named(tmp_path: Path) -> None:
    """For root, too, once it may no longer write everywhere."""
    (tmp_path / "runs").mkdir(mode=0o555)
    code = (
        "import sys\n"
        "from orchestrator.ledger.storage import Storage\n"
        "from orchestrator.ledger.store import require_usable\n"
        "require_usable(Storage(sys.argv[1]))"
    )
    bounded = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    argv = [*(bounded if os.geteuid() == 0 else []), sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert "runs: cannot be written by you; let its owner" in done.stderr


def test_what_the_system_says_of_a_store_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BackendError) as raised:
        require_usable(Storage(str(tmp_path / "file")))
    assert str(raised.value) in (
        f"store: {tmp_path}/file: Not a directory",
        f"store: {tmp_path}/file: File exists",
    )
