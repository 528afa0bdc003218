"""A run goes from one store to another: whole, once, and whoever dies on the way."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cli.main import main
from orchestrator.control.code_snapshot import code_origin, code_snapshot
from orchestrator.control.move import Listener, Place, bring, is_same, where_it_lies
from orchestrator.control.request import prepare, start
from orchestrator.errors import Cause, CorruptError, LeaseHeldError, RequestError
from orchestrator.ledger import checkpoints
from orchestrator.ledger import lease as leases
from orchestrator.ledger.artifact import Artifact
from orchestrator.ledger.checkpoints import Manifest
from orchestrator.ledger.moved import Moved, record_arrival, record_moved
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import Observed, RunState, run_status
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.verify import verify
from orchestrator.plan.planner import Instance
from tests.unit.orchestrator.trainings import save

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["orchestrator.control.move", "orchestrator.control.request"])
TIMEOUT_S = 60.0
SHARDS = {"shards/000/000000.parquet": b"a" * 1000, "shards/000/000001.parquet": b"b" * 1000}


class World:
    """A run whose corpus, encoder and codebook are done, with tokenize and train under way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        spec = yaml.safe_load((folder / "c.yaml").read_text())
        for name in ("b", "third"):
            other = {**spec, "store": str(folder / name)}
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(other))
        (folder / "c.yaml").write_text(yaml.safe_dump({**spec, "store": str(folder / "a")}))
        request = prepare(folder / "r.yaml", folder / "c.yaml")
        self.plan, self.store = request.plan, request.store
        self.run = RunFolder(self.store.run_storage(self.plan.run))
        code = {p: d for p, d in code_snapshot().items() if p.endswith("errors.py")}
        self.run.create(self.plan, request.recipe, request.cluster, code, code_origin(code))
        for node in ("corpus", "encoder", "codebook"):
            instance = self.instance(node)
            artifact = self.artifact(node)
            artifact.begin(instance.inputs)
            artifact.storage.create("data.bin", node.encode() * 1000)
            artifact.publish(inputs=instance.inputs, facts={}, producer={})
        for path, data in SHARDS.items():
            self.artifact("tokenize").storage.create(path, data)
        self.attempt = self.run.begin_attempt(self.instance("train").id, process={})
        self.attempt.storage.create("driver.log", b"step 1\n")
        self.holder = f"{self.run.name}/{self.instance('train').id}/0001"
        self.lease = leases.acquire(self.train, holder=self.holder, timeout_s=TIMEOUT_S)
        self.saved: list[Manifest] = []
        for step in (10, 20, 30):
            self.save(step)

    @property
    def train(self) -> Storage:
        return self.artifact("train").storage

    def instance(self, node: str) -> Instance:
        return next(i for i in self.plan.instances if i.node == node)

    def artifact(self, node: str) -> Artifact:
        return self.store.artifact(self.instance(node).stage, self.instance(node).key)

    def save(self, step: int) -> Manifest:
        """A checkpoint of the old holder."""
        before = self.saved[-1] if self.saved else None
        self.saved.append(save(self.train, step, self.lease.number, before))
        return self.saved[-1]

    @property
    def here(self) -> Place:
        return Place(self.run, self.store)

    def bring(self, name: str = "b", **listener: Any) -> Place:
        place = where_it_lies(self.here)
        return bring(place, self.folder / f"{name}.yaml", Listener(**listener))

    def there(self, name: str = "b") -> Place:
        return Place.at(str(self.folder / name / "runs" / self.run.name))

    def artifact_there(self, node: str, name: str = "b") -> Artifact:
        instance = self.instance(node)
        return self.there(name).store.artifact(instance.stage, instance.key)


@pytest.fixture
def world(project: Path) -> World:
    return World(project)


def content(folder: Storage, *but: str) -> dict[str, bytes]:
    return {p: folder.read_bytes(p) for p in folder.list() if not p.startswith(but)}


def require_arrived(world: World, name: str = "b") -> None:
    """All that counts is in the new store, as it was."""
    place = world.there(name)
    assert place.is_home
    assert where_it_lies(world.here).url == place.url
    for node in ("corpus", "encoder", "codebook"):
        mine, theirs = world.artifact(node).storage, world.artifact_there(node, name).storage
        assert content(theirs, "lease/") == content(mine, "lease/")
    tokenize = world.artifact_there("tokenize", name).storage
    assert content(tokenize, "lease/") == SHARDS
    train = world.artifact_there("train", name).storage
    found = checkpoints.committed(train)
    newest = leases.acquire(train, holder="next", timeout_s=TIMEOUT_S)
    newest.release()
    chain = checkpoints.resumable(found, range(1, newest.number + 1))
    assert [m.step for m in chain] == [30, 20]
    assert checkpoints.join_segments(train, chain[0].metrics)
    for manifest in chain:
        assert not checkpoints.fetch_verified(train, manifest, ["state.pt"], world.folder)
    stays = ("moved.json", "arrival.json", "move-lease/", "supervisor-lease/", "clusters/")
    assert content(place.run.storage, *stays) == content(world.run.storage, *stays)
    assert place.run.cluster().store == str(world.folder / name)
    (attempt,) = place.run.attempts(world.instance("train").id)
    assert attempt.end is not None
    assert attempt.end["cause"] == Cause.MOVED


def test_a_run_moves_with_all_it_needs(world: World) -> None:
    world.bring()
    require_arrived(world)
    verdicts = {v.instance: v for v in verify(world.there().run, world.there().store)}
    assert not verdicts[world.instance("codebook").id].problems
    moved = world.run.moved
    assert moved
    assert moved.arrived_at
    assert moved.leases[world.instance("train").id] == 2


@pytest.mark.parametrize("is_finished", [False, True])
def test_a_training_keeps_its_id_in_trackers_and_its_skips(world: World, is_finished: bool) -> None:
    known_as = checkpoints.curves_id(world.train)
    checkpoints.note_skips(world.train, [3, 4])
    if is_finished:
        train = world.instance("train")
        world.artifact("train").publish(inputs=train.inputs, facts={}, producer={})
    world.bring()
    there = world.artifact_there("train")
    assert there.is_complete() == is_finished
    assert checkpoints.curves_id(there.storage) == known_as
    assert checkpoints.skipped(there.storage) == {3, 4}


def test_who_worked_there_is_fenced_off_and_others_are_not_blocked(world: World) -> None:
    world.bring()
    with pytest.raises(LeaseHeldError, match="lease 1 was lost to 2"):
        world.lease.beat()
    other = leases.acquire(world.train, holder="other/train/0001", timeout_s=TIMEOUT_S)
    assert other.number == 3
    assert world.run.supervising() is None
    assert world.there().run.supervising() is None


def test_what_is_committed_after_the_fence_is_not_copied(world: World) -> None:
    def late(point: str) -> None:
        if point == "moved":
            world.save(40)  # its process had looked at the lease before
            world.artifact("tokenize").storage.create("shards/000/000002.parquet", b"c")

    world.bring(passed=late)
    assert world.saved.pop().step == 40
    require_arrived(world)


def test_the_old_run_says_where_it_went(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.bring()
    to = world.there().url
    said = f"{world.run.name}: moved to {to}; `orchestrator resume {to}` goes on there"
    with pytest.raises(RequestError) as raised:
        start(world.run, world.store)
    assert str(raised.value) == said
    status = run_status(world.run, world.store, Observed(is_alive=False))
    assert (status.state, status.moved_to) == (RunState.CANCELLED, to)
    assert status.to_json()["moved_to"] == to
    here = ["--cluster", str(world.folder / "c.yaml")]
    assert main(["status", *here]) == 0
    assert f"\n{world.run.name}: moved to {to}\n" in capsys.readouterr().out
    assert main(["status", world.run.name, *here]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{world.run.name}: moved ")
    assert f"moved to {to}" in printed.replace("\n", "")
    assert main(["status", world.run.name, "--watch", *here]) == 1  # that it succeeds is not known
    ending = f"  `orchestrator status {to} --watch` shows it there"
    assert capsys.readouterr().err.splitlines()[-2:] == [
        f"run {world.run.name}: moved to {to}",
        ending,
    ]
    assert main(["submit", str(world.folder / "r.yaml"), *here]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert main(["resume", world.run.storage.url]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == said


def test_what_a_run_left_behind_is_not_taken_for_it(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    name, to = world.run.name, world.there().url
    moved = Moved(to=to, at=0.0)
    record_moved(world.run.storage, moved)
    assert main(["cancel", world.run.storage.url]) == 2
    assert f"{name}: is on its way to {to}; `orchestrator resume {name} " in capsys.readouterr().err
    for at, words in ((None, "on its way"), (1.0, "moved")):
        if at:
            record_arrival(world.run.storage, moved, at)
        for verb in ("logs", "verify"):
            main([verb, world.run.storage.url])
            said = f"run {name}: {words} to {to}; this is what it left here"
            assert said in capsys.readouterr().err.splitlines()
    for verb, *more in (["cancel"], ["cancel", "train"], ["chaos", "--kill", "rank"]):
        assert main([verb, world.run.storage.url, *more]) == 2
        said = f"{name}: moved to {to}; `orchestrator {verb} {to}` reaches it there"
        assert capsys.readouterr().err.splitlines() == [said]


def test_a_run_whose_new_folder_is_lost_says_how_it_goes_on(world: World) -> None:
    world.bring()
    (world.folder / "b").rename(world.folder / "away")
    for name in ("b", "c", "third"):
        with pytest.raises(RequestError) as raised:
            world.bring(name)
        assert str(raised.value) == (
            f"{world.run.name}: moved to {world.there().url}, where it is no longer; bring that "
            "folder back, or, where it is lost for good, remove "
            f"{world.here.url}/moved.json to go on from here"
        )
    (world.folder / "a" / "runs" / world.run.name / "moved.json").unlink()
    assert world.bring("third").is_home


@pytest.mark.parametrize("inner", ["a/runs", "a/runs/{run}", "a/artifacts/x", "link/models/y"])
def test_a_store_does_not_lie_among_the_things_of_another(world: World, inner: str) -> None:
    (world.folder / "link").symlink_to(world.folder / "a")
    where = str(world.folder / inner.format(run=world.run.name))
    (world.folder / "in.yaml").write_text(f"extends: c.yaml\nstore: {where}\n")
    with pytest.raises(RequestError, match=f"^store: {where} lies in a folder that the store "):
        world.bring("in")
    assert world.here.is_home
    place = Place.at(f"{where}/runs/{world.run.name}")
    shutil.copytree(world.here.url, str(world.folder / "copy"))
    shutil.copytree(str(world.folder / "copy"), place.url, dirs_exist_ok=True)
    with pytest.raises(RequestError, match=f"^store: {where} lies in a folder"):
        bring(place, world.folder / "c.yaml")  # it would have removed itself


def test_a_store_may_lie_beside_the_things_of_another(world: World) -> None:
    (world.folder / "in.yaml").write_text(f"extends: c.yaml\nstore: {world.folder}/a/more\n")
    assert world.bring("in").is_home
    assert world.bring("c").url == world.here.url


def _die_at(folder: Path, cluster: str, point: str, nth: int) -> None:
    """A mover that is killed when it passes a point for the ``nth`` time."""
    lock, left = threading.Lock(), iter(range(nth, 0, -1))

    def passed(name: str) -> None:
        with lock:
            if name.partition("-")[0] == point and next(left) == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    (url,) = (folder / "a" / "runs").iterdir()
    bring(where_it_lies(Place.at(str(url))), folder / f"{cluster}.yaml", Listener(passed=passed))


def kill_mover(world: World, cluster: str, point: str, nth: int = 1) -> None:
    mover = _CONTEXT.Process(target=_die_at, args=(world.folder, cluster, point, nth))
    mover.start()
    mover.join()
    assert mover.exitcode == -signal.SIGKILL


POINTS = [
    *[(p, 1) for p in ("locked", "claimed", "stopped", "leases", "moved", "closed")],
    *[("file", n) for n in (1, 5, 9, 12, 16)],
    *[(p, 1) for p in ("copied tokenize", "copied train", "folder", "cluster", "plan", "home")],
]


@pytest.mark.parametrize(("point", "nth"), POINTS)
def test_a_mover_may_die_anywhere(world: World, point: str, nth: int) -> None:
    kill_mover(world, "b", point, nth)
    assert world.there().is_home == (point in ("plan", "home"))
    world.bring()
    require_arrived(world)


def test_a_move_that_is_not_over_says_so_and_can_be_given_up(world: World) -> None:
    kill_mover(world, "b", "copied train")
    name = world.run.name
    on_its_way = f"{name}: is on its way to {world.there().url}; `orchestrator resume {name}"
    for act in (lambda: start(world.run, world.store), lambda: world.bring("third")):
        with pytest.raises(RequestError) as raised:
            act()
        assert str(raised.value).startswith(on_its_way)
    said: list[str] = []
    assert world.bring("c", say=said.append).url == world.here.url
    assert said == [f"{name}: stays; what was copied lies there for another move"]
    assert world.here.is_home
    world.lease = leases.acquire(world.train, holder=world.holder, timeout_s=TIMEOUT_S)
    world.save(40)
    assert world.bring("third").is_home
    assert world.bring("c").url == world.here.url


def test_a_run_that_has_arrived_is_not_given_up(world: World) -> None:
    kill_mover(world, "b", "plan")
    place = Place(world.run, world.store)
    with pytest.raises(RequestError, match=f"moved to {world.there().url}"):
        bring(place, world.folder / "c.yaml")
    assert world.there().is_home


def test_a_run_moves_on_and_back(world: World) -> None:
    """What the old place held of another time does not count."""
    world.bring()
    zombie = save(world.train, 40, 1, world.saved[-1])
    world.run.storage.create(f"stages/{world.instance('train').id}/late.log", b"x")
    train = world.artifact_there("train").storage
    held = leases.acquire(train, holder="b/train/0001", timeout_s=TIMEOUT_S)
    newer = save(train, 35, held.number, world.saved[-1])
    held.release()
    assert world.bring("third").is_home
    assert where_it_lies(world.here).url == world.there("third").url
    assert world.bring("c").url == world.here.url
    assert world.here.is_home
    assert world.run.cluster().store == str(world.folder / "a")
    assert not world.run.storage.exists(f"stages/{world.instance('train').id}/late.log")
    next_one = leases.acquire(world.train, holder="a/train/0002", timeout_s=TIMEOUT_S)
    next_one.release()
    assert next_one.number > held.number
    found = checkpoints.committed(world.train)
    assert zombie in found
    chain = checkpoints.resumable(found, range(1, next_one.number + 1))
    assert chain[0] == newer
    assert zombie not in chain
    world.bring("b")
    assert where_it_lies(world.here).url == world.there("b").url


def test_of_two_movers_one_goes_on(world: World) -> None:
    def second(point: str) -> None:
        if point == "copied " + world.instance("encoder").id:
            with pytest.raises(RequestError) as raised:
                world.bring()
            refused.append(str(raised.value))

    refused: list[str] = []
    world.bring(passed=second)
    assert refused == [
        f"{world.run.name}: somebody else is moving it just now; try again once that has ended"
    ]
    require_arrived(world)


def flip(storage: Storage, path: str) -> None:
    data = bytearray(storage.read_bytes(path))
    data[len(data) // 2] ^= 1
    storage.replace(path, bytes(data))


def test_a_harmed_checkpoint_is_passed_over(world: World) -> None:
    newest, said = world.saved[-1], list[str]()
    flip(world.train, f"checkpoints/{newest.name}/state.pt")
    world.bring(say=said.append)
    assert len(said) == 1
    assert f"checkpoints/{newest.name}/state.pt: bytes differ from the manifest's sha256" in said[0]
    found = checkpoints.committed(world.artifact_there("train").storage)
    assert [m.step for m in found] == [10, 20]


def test_with_no_whole_checkpoint_nothing_begins_anew_by_itself(world: World) -> None:
    for manifest in world.saved:
        flip(world.train, f"checkpoints/{manifest.name}/state.pt")
    with pytest.raises(CorruptError, match="none of 3 checkpoints verifies"):
        world.bring()
    assert not world.there().run.exists()


@pytest.mark.parametrize("harm", ["flipped", "cut"])
def test_a_harmed_artifact_is_not_brought(world: World, harm: str) -> None:
    storage = world.artifact("codebook").storage
    if harm == "flipped":
        flip(storage, "data.bin")
    else:
        storage.replace("data.bin", storage.read_bytes("data.bin")[:-1])
    with pytest.raises(CorruptError) as raised:
        world.bring()
    said = f"{storage.url}/data.bin: bytes differ from the manifest's sha256"
    assert str(raised.value).startswith(said)
    assert not world.artifact_there("codebook").is_complete()
    storage.replace("data.bin", b"codebook" * 1000)
    world.bring()
    require_arrived(world)


def test_what_another_left_half_way_is_replaced_and_what_is_complete_stays(world: World) -> None:
    world.artifact_there("codebook").storage.create("data.bin", b"torn")
    encoder = world.instance("encoder")
    complete = world.artifact_there("encoder")
    complete.storage.create("data.bin", b"encoder" * 1000)
    complete.storage.create("more.bin", b"of that store")
    complete.publish(inputs=encoder.inputs, facts={}, producer={})
    before = content(complete.storage)
    world.bring()
    assert content(complete.storage) == before
    assert not list(world.artifact_there("codebook").problems())


def test_anothers_work_is_let_be_on_either_side(world: World) -> None:
    leases.acquire(world.artifact("tokenize").storage, holder="other/t/1", timeout_s=TIMEOUT_S)
    there = leases.acquire(
        world.artifact_there("codebook").storage, holder="else/c/1", timeout_s=TIMEOUT_S
    )
    said: list[str] = []
    world.bring(say=said.append)
    assert content(world.artifact_there("tokenize").storage, "lease/") == SHARDS
    assert not world.artifact_there("codebook").is_complete()
    there.beat()
    assert [line.partition(": held by ")[2].partition(" ")[0] for line in said] == [
        "other/t/1",
        "else/c/1",
    ]


def test_another_run_of_the_name_is_not_written_over(world: World) -> None:
    request = prepare(world.folder / "r.yaml", world.folder / "b.yaml")
    world.there().run.create(request.plan, request.recipe, request.cluster, {}, {})
    with pytest.raises(RequestError) as raised:
        world.bring()
    assert str(raised.value) == (
        f"{world.run.name}: {world.folder}/b has a run of this name; "
        f"`orchestrator resume {world.there().url}` goes on with that one"
    )
    assert world.here.is_home


@pytest.mark.parametrize(("theirs", "goes_on"), [(22, False), (50, True)])
def test_another_training_of_the_same_there(world: World, theirs: int, goes_on: bool) -> None:
    train = world.artifact_there("train").storage
    other = save(train, theirs // 2, 1)
    save(train, theirs, 1, other)
    said: list[str] = []
    if goes_on:
        world.bring(say=said.append)
        assert said == [
            f"{world.instance('train').id}: goes on from a training of the same at {train.url}, "
            "at step 50"
        ]
        assert [m.step for m in checkpoints.committed(train)] == [25, 50]
    else:
        with pytest.raises(RequestError, match="at step 22, ours is at 30; move that folder away"):
            world.bring()
        assert world.here.is_home


def test_models_of_a_hub_go_along(world: World) -> None:
    kept = world.store.storage.at("models", "hubert-1")
    data, digest = b"weights", "9f86d081884c7d659a2feaa0c55ad015"
    kept.create("model.safetensors", data)
    digest = kept.digest("model.safetensors")
    files = {"model.safetensors": {"size": len(data), "sha256": digest}}
    kept.create_json("MANIFEST.json", {"name": "hubert", "revision": None, "files": files})
    world.store.storage.at("models", "other").create_json(
        "MANIFEST.json", {"name": "other/model", "revision": None, "files": {}}
    )
    world.bring()
    there = world.there().store.storage
    assert content(there.at("models", "hubert-1")) == content(kept)
    assert there.children("models") == ("hubert-1",)


def test_what_nodes_talk_by_stays(world: World) -> None:
    for path in ("stages/t/head.json", "stages/t/allocations/1-0/address.json"):
        world.run.storage.create(path, b"a token")
    world.run.storage.create("stages/t/allocations/1-0/ray.log", b"a log")
    world.bring()
    assert content(world.there().run.storage.at("stages", "t")) == {
        "allocations/1-0/ray.log": b"a log"
    }


def test_a_store_by_another_path_is_the_same(world: World) -> None:
    (world.folder / "link").symlink_to(world.folder / "a")
    spec = yaml.safe_load((world.folder / "c.yaml").read_text())
    (world.folder / "link.yaml").write_text(
        yaml.safe_dump({**spec, "store": str(world.folder / "link")})
    )
    assert world.bring("link").url == world.here.url
    assert world.here.is_home
    assert is_same(Storage("s3://b/a/"), Storage("s3://b/a"))
    assert not is_same(Storage("s3://b/a"), Storage(str(world.folder)))


def test_a_name_is_looked_up_here_where_it_is_not_there(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world.folder)
    assert main(["resume", "nothing", "--cluster", "b.yaml"]) == 2
    assert capsys.readouterr().err == (
        f"nothing: no such run in {world.folder}/b; give the path or URL of its folder\n"
    )
    monkeypatch.setenv("ORCHESTRATOR_CLUSTER", "c.yaml")
    assert main(["resume", "nothing", "--cluster", "b.yaml"]) == 2
    assert capsys.readouterr().err == (
        f"nothing: no such run in {world.folder}/b and {world.folder}/a; give the path or URL of "
        "its folder\n"
    )


def test_what_the_other_cluster_cannot_do_is_refused_before(world: World) -> None:
    spec = yaml.safe_load((world.folder / "b.yaml").read_text())
    (world.folder / "third.yaml").write_text(
        yaml.safe_dump({**spec, "resources": {"train": {"ranks_per_node": 3}}})
    )
    with pytest.raises(RequestError, match=r"third.yaml: resources.train: 3 ranks"):
        world.bring("third")
    assert world.here.is_home
    assert not (world.folder / "b").exists()
