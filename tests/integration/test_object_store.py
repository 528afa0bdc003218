"""The store and a training on a real S3 API: a server of its own, spoken to over HTTP."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier
from typing import Any
from urllib.parse import urlsplit

import pytest

from orchestrator.errors import AlreadyExistsError, CorruptError
from orchestrator.ledger import checkpoints
from orchestrator.ledger.attempt import DRIVER_LOG
from orchestrator.ledger.object_store import ObjectStore
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage, sha256_of
from tests.faulty_store import FAULTS, Fault, FaultyStore
from tests.integration.conftest import BUCKET
from tests.smoke import Smoke
from tests.training import Training, finish, make_inputs

pytestmark = pytest.mark.slow
EVERY = 8
RUN_TIMEOUT_S = 1500.0
PART_BYTES = 5 << 20
"""The least that S3 takes."""


@pytest.fixture
def storage(s3: dict[str, str], request: pytest.FixtureRequest) -> Storage:
    """A folder of the bucket for one test."""
    return Storage(f"s3://{BUCKET}/{request.node.name}")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def _create_all(url: str, worker: int, num_objects: int) -> list[int]:
    """The objects that this process won."""
    storage, won = Storage(url), []
    for n in range(num_objects):
        try:
            storage.create(f"race/{n}", bytes([worker]) * 1000)
            won.append(n)
        except AlreadyExistsError:
            continue
    return won


def test_one_of_eight_threads_wins(storage: Storage) -> None:
    together = Barrier(8)

    def attempt(worker: int, name: str) -> int | None:
        mine = Storage(storage.url)
        together.wait()
        try:
            mine.create(name, bytes([worker]) * 1000)
        except AlreadyExistsError:
            return None
        return worker

    with ThreadPoolExecutor(8) as pool:
        for turn in range(5):
            name = f"race/{turn}"
            winners = [w for w in pool.map(attempt, range(8), [name] * 8) if w is not None]
            assert len(winners) == 1
            assert storage.read_bytes(name) == bytes(winners) * 1000


def test_one_of_two_processes_wins(storage: Storage) -> None:
    num_objects = 40
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        told = [(storage.url, worker, num_objects) for worker in range(2)]
        won = pool.starmap(_create_all, told, chunksize=1)
        pool.close()
        pool.join()
    assert sorted(won[0] + won[1]) == list(range(num_objects))
    for worker, numbers in enumerate(won):
        for n in numbers:
            assert storage.read_bytes(f"race/{n}") == bytes([worker]) * 1000


def test_whole_life_of_objects(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("b/2")
    assert (storage.list(), storage.children(), storage.exists("b")) == ({}, (), False)
    storage.delete("b/2")
    storage.create("once", b"1")
    with pytest.raises(AlreadyExistsError) as raised:
        storage.create("once", b"2")
    assert str(raised.value) == f"{storage.url}/once: already exists"
    storage.delete("once")
    for path, size in (("b/2", 2), ("a", 1), ("b/c/3", 3), ("bb/4", 4)):
        storage.create(path, b"x" * size)
    assert list(storage.list().items()) == [("a", 1), ("b/2", 2), ("b/c/3", 3), ("bb/4", 4)]
    assert storage.children() == ("a", "b", "bb")
    storage.replace("b/2", b"other")
    assert storage.read_bytes("b/2") == b"other"
    assert storage.digest("b/2") == hashlib.sha256(b"other").hexdigest()
    storage.delete("b/2")
    assert not storage.exists("b/2")
    assert storage.list("b") == {"b/c/3": 3}


def test_what_marks_a_folder_is_no_object(storage: Storage) -> None:
    """As pyarrow leaves it, which Ray Train writes with."""
    import boto3

    key = f"{storage.url.removeprefix(f's3://{BUCKET}/')}/a"
    for marker in (f"{key}/", f"{key}/deep/"):
        boto3.client("s3").put_object(Bucket=BUCKET, Key=marker, Body=b"")
    storage.create("a/empty", b"")
    storage.create("a/full", b"1")
    assert storage.list() == storage.list("a") == {"a/empty": 0, "a/full": 1}
    assert storage.children("a") == ("deep", "empty", "full")


def test_folders_that_begin_alike_are_not_mixed_up(storage: Storage) -> None:
    for path in ("a/1", "ab/2", "a.json"):
        storage.create(path, b"x")
    assert storage.list("a") == {"a/1": 1}
    assert storage.children("a") == ("1",)
    assert Storage(f"{storage.url}/a").list() == {"1": 1}
    assert not storage.exists("a/2")
    assert (storage.list("a.json"), storage.children("a.json")) == ({}, ())


def test_more_objects_than_one_page_of_a_listing(storage: Storage) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: storage.create(f"p/{n:04d}", b"x"), range(1_050)))
    assert len(storage.list()) == len(storage.children("p")) == 1_050


def test_upload_and_fetch(storage: Storage, tmp_path: Path) -> None:
    local = tmp_path / "local.bin"
    local.write_bytes(b"bytes")
    digest = storage.upload(local, "a/b.bin")
    assert digest == storage.upload(local, "a/b.bin") == storage.digest("a/b.bin")
    assert sha256_of(storage.fetch("a/b.bin", tmp_path / "into")) == digest
    local.write_bytes(b"other")
    with pytest.raises(CorruptError) as raised:
        storage.upload(local, "a/b.bin")
    assert str(raised.value) == f"{storage.url}/a/b.bin: holds other bytes than {local}"
    assert storage.read_bytes("a/b.bin") == b"bytes"
    with pytest.raises(FileNotFoundError):
        storage.fetch("a/c.bin", tmp_path / "into")


def test_a_large_file_goes_in_parts(storage: Storage, tmp_path: Path) -> None:
    local = tmp_path / "large.bin"
    with local.open("wb") as file:
        for n in range(110):
            file.write(bytes([n]) * (1 << 20))
    digest = storage.upload(local, "large.bin")
    assert storage.list() == {"large.bin": 110 << 20}
    assert storage.digest("large.bin") == digest == storage.upload(local, "large.bin")
    assert sha256_of(storage.fetch("large.bin", tmp_path / "into")) == digest
    with local.open("ab") as file:
        file.write(b"x")
    with pytest.raises(CorruptError):
        storage.upload(local, "large.bin")
    assert storage.digest("large.bin") == digest


def behind_faults(s3: dict[str, str], storage: Storage, seed: int = 0) -> FaultyStore:
    """A way to the server on which faults are planned."""
    url = urlsplit(s3["AWS_ENDPOINT_URL"])
    return FaultyStore((url.hostname or "", url.port or 0), seed=seed)


VERBS: dict[str, tuple[str, Callable[[ObjectStore], Any], Any]] = {
    "create": ("PUT", lambda store: store.create("new", b"ours"), None),
    "replace": ("PUT", lambda store: store.replace("there", b"there"), None),
    "read": ("GET", lambda store: store.read_bytes("there", 0), b"there"),
    "read the end": ("GET", lambda store: store.read_bytes("there", -2), b"re"),
    "look": ("HEAD", lambda store: store.exists("there"), True),
    "list": ("GET", lambda store: store.list(""), {"there": 5}),
    "list a folder": ("GET", lambda store: store.children(""), {"there"}),
    "delete": ("POST", lambda store: store.delete("gone"), None),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("fault", [*FAULTS, "hold"])
def test_a_fault_on_the_way_is_overcome(
    s3: dict[str, str], storage: Storage, fault: Fault, verb: str
) -> None:
    """A lost answer to a conditional write of ours is no object of somebody else."""
    storage.create("there", b"there")
    faulty, (method, ask, answer) = behind_faults(s3, storage), VERBS[verb]
    with faulty.serving() as url:
        store = ObjectStore(storage.url, timeout_s=1.0, endpoint=url)
        faulty.plan.append((method, fault))
        assert ask(store) == answer
        assert not faulty.plan, "no request met the fault"
    if verb == "create":
        assert storage.read_bytes("new") == b"ours"
        with pytest.raises(AlreadyExistsError):
            storage.create("new", b"ours")


def test_a_lost_answer_does_not_make_anothers_object_ours(
    s3: dict[str, str], storage: Storage
) -> None:
    storage.create("a", b"theirs")
    faulty = behind_faults(s3, storage)
    with faulty.serving() as url:
        faulty.plan.append(("PUT", "lost"))
        with pytest.raises(AlreadyExistsError):
            ObjectStore(storage.url, endpoint=url).create("a", b"ours")
    assert storage.read_bytes("a") == b"theirs"


def test_a_store_that_stays_away_is_an_os_error_in_time(
    s3: dict[str, str], storage: Storage
) -> None:
    with behind_faults(s3, storage).serving() as url:
        gone = url
    with pytest.raises(ConnectionError) as raised:
        ObjectStore(storage.url, endpoint=gone, deadline_s=1.0).read_bytes("a", 0)
    assert str(raised.value).startswith(f"{storage.url}/a: the store did not do as asked (")
    assert "see that it is up" in str(raised.value)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("methods", [("POST",), ("PUT",), ("PUT", "PUT", "POST")])
def test_a_file_in_parts_survives_faults(
    s3: dict[str, str],
    storage: Storage,
    tmp_path: Path,
    fault: Fault,
    methods: tuple[str, ...],
) -> None:
    local = tmp_path / "large.bin"
    local.write_bytes(os.urandom(2 * PART_BYTES + 1))
    faulty, ticks = behind_faults(s3, storage), []
    with faulty.serving() as url:
        store = ObjectStore(storage.url, endpoint=url, part_bytes=PART_BYTES)
        faulty.plan += [(method, fault) for method in methods]
        with suppress(AlreadyExistsError):  # complete, its answer lost
            store.upload(local, "large.bin", lambda: ticks.append(None))
        assert len(ticks) >= 3
        faulty.plan += [("GET", "half"), ("GET", "reset")]
        store.fetch("large.bin", tmp_path / "back.bin")
    assert not faulty.plan
    assert (tmp_path / "back.bin").read_bytes() == local.read_bytes()
    storage.sweep(but="lease")
    assert uploads_left(storage.url.removeprefix(f"s3://{BUCKET}/")) == []


def uploads_left(prefix: str = "") -> list[str]:
    import boto3

    page = boto3.client("s3").list_multipart_uploads(Bucket=BUCKET, Prefix=prefix)
    found = page.get("Uploads", [])
    return [upload["Key"] for upload in found]


def _upload(url: str, local: Path) -> None:
    ObjectStore(url, part_bytes=PART_BYTES).upload(local, "large.bin", lambda: None)


def test_what_a_killed_writer_left_is_invisible_and_aborted(
    storage: Storage, tmp_path: Path
) -> None:
    """Of another folder nothing is aborted."""
    import boto3

    local = tmp_path / "large.bin"
    local.write_bytes(bytes(20 * PART_BYTES))
    other = boto3.client("s3").create_multipart_upload(Bucket=BUCKET, Key="other/large.bin")
    writer = multiprocessing.get_context("spawn").Process(target=_upload, args=(storage.url, local))
    writer.start()
    deadline = time.monotonic() + 300
    while len(uploads_left()) < 2:
        assert time.monotonic() < deadline
        assert writer.is_alive()
    writer.kill()
    writer.join()
    assert not storage.exists("large.bin")
    assert storage.list() == {}
    assert storage.sweep(but="lease") == 1
    assert uploads_left() == ["other/large.bin"]
    boto3.client("s3").abort_multipart_upload(
        Bucket=BUCKET, Key="other/large.bin", UploadId=other["UploadId"]
    )
    assert storage.upload(local, "large.bin") == storage.digest("large.bin")


def test_googles_store_is_asked_in_its_own_words(
    s3: dict[str, str], storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server reads, lists and writes alike, but knows not Google's precondition: only that it
    is asked for is shown here."""
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "anything")
    faulty = behind_faults(s3, storage)
    with faulty.serving() as url:
        store = ObjectStore(storage.url.replace("s3://", "gs://"), endpoint=url)
        store.create("a/b", b"1")
        assert faulty.heard[-1][0] == "PUT"
        assert faulty.heard[-1][1]["x-goog-if-generation-match"] == "0"
        faulty.plan += [("GET", fault) for fault in FAULTS]
        assert store.read_bytes("a/b", 0) == b"1"
        assert (store.list(""), store.children("")) == ({"a/b": 1}, {"a"})
        store.replace("a/b", b"22")
        assert "x-goog-if-generation-match" not in faulty.heard[-1][1]
        store.delete("a/b")
        assert not store.exists("a/b")
        assert not faulty.plan


def test_what_another_client_does_is_seen_at_once(storage: Storage) -> None:
    import boto3

    other, key = boto3.client("s3"), f"{storage.url.removeprefix(f's3://{BUCKET}/')}/a/b"
    assert (storage.exists("a/b"), storage.list(), storage.children("a")) == (False, {}, ())
    other.put_object(Bucket=BUCKET, Key=key, Body=b"1")
    assert (storage.exists("a/b"), storage.list("a"), storage.children()) == (
        True,
        {"a/b": 1},
        ("a",),
    )
    other.put_object(Bucket=BUCKET, Key=key, Body=b"longer")
    assert storage.read_bytes("a/b") == b"longer"
    assert storage.digest("a/b") == hashlib.sha256(b"longer").hexdigest()
    other.delete_object(Bucket=BUCKET, Key=key)
    assert (storage.exists("a/b"), storage.list(), storage.children()) == (False, {}, ())


def test_a_training_killed_twice_on_s3_equals_one_on_a_path(
    inputs: Path, tmp_path: Path, s3: dict[str, str]
) -> None:
    """Killed, resumed, killed again, its newest checkpoint harmed, and resumed to the end."""
    whole = Training(inputs=inputs, root=tmp_path / "whole", zero_stage=1)
    assert whole.run() == [0, 0]
    broken = Training(
        inputs=inputs,
        root=tmp_path / "broken",
        zero_stage=1,
        out_url=f"s3://{BUCKET}/run",
        environment=s3,
    )
    ranks = broken.start()
    broken.kill_after(2 * EVERY, ranks[1])
    assert all(code != 0 for code in finish(ranks)), "a rank went on without its peer"
    first = checkpoints.committed(broken.out)[-1]
    assert first.step < broken.steps, "the kill came too late to prove anything"

    ranks = broken.start(2)
    broken.kill_after(first.step + EVERY, ranks[0], 2)
    finish(ranks)
    *_, before, newest = checkpoints.committed(broken.out)
    assert newest.step < broken.steps, "the kill came too late to prove anything"
    assert [(s.lease_n, s.first_step) for s in newest.history] == [(1, 1), (2, first.step + 1)]

    name = next(n for n in newest.files if "optim_states" in n)
    path = f"{checkpoints.FOLDER}/{newest.name}/{name}"
    data = broken.out.read_bytes(path)
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    broken.out.replace(path, flipped)
    shutil.rmtree(broken.root / "scratch")  # on the node that wrote it, it lies unharmed
    assert broken.run(3) == [0, 0]
    (problem,) = broken.live(3)["refused"]
    assert problem == f"{path}: bytes differ from the manifest's sha256"
    assert broken.live(3)["resumed_from"] == before.name
    assert broken.results() == whole.results()
    assert [line["step"] for line in broken.lines()] == list(range(1, broken.steps + 1))


def test_a_run_on_s3_from_submit_to_succeeded(
    tmp_path: Path, s3: dict[str, str], calm: tuple[Smoke, str], material: Path
) -> None:
    """The local backend needs no path for its store: code, logs and page are in the bucket.

    One request in fifty is refused, cut off or loses its answer; the bytes are those on a path.
    """
    server = urlsplit(s3["AWS_ENDPOINT_URL"])
    faulty = FaultyStore((server.hostname or "", server.port or 0), share=0.02, seed=9)
    with faulty.serving() as endpoint:
        env = {**s3, "AWS_ENDPOINT_URL": endpoint}
        run_through(tmp_path, env, calm[0], material, f"s3://{BUCKET}/whole")
    assert faulty.met.total() >= 30, faulty.met
    assert uploads_left("whole/") == []


def run_through(
    tmp_path: Path, environment: dict[str, str], calm: Smoke, material: Path, url: str
) -> None:
    """A run whose store is at the URL makes the calm run's bytes and leaves nothing else."""
    temporary = tmp_path / "s-tmp"  # begins like the folder by which processes are found
    temporary.mkdir()
    env = {**os.environ, **environment, "TMPDIR": str(temporary)}
    smoke = Smoke.create(tmp_path / "s", material, env, store=url)
    run = smoke.submit("--set", "sweep={}")
    folder, artifacts = RunFolder(Storage(f"{url}/runs/{run}")), Storage(f"{url}/artifacts")
    (supervisor,) = folder.supervisors()
    deadline = time.monotonic() + RUN_TIMEOUT_S
    while supervisor.end is None:  # not watched each second: the server answers one at a time
        assert time.monotonic() < deadline, smoke.status(run)
        time.sleep(5)
    status = smoke.status(run)
    states = {s["state"] for s in status["stages"]}
    why = smoke.orchestrator("logs", run, "--first-error", check=False).stdout
    assert (status["state"], states) == ("succeeded", {"succeeded"}), why
    assert json.loads(smoke.orchestrator("verify", run, "--json").stdout)["ok"]
    made = {p: d for p, d in calm.fingerprint().items() if artifacts.exists(p)}
    assert {path.split("/")[0] for path in made} == {"tokenize", "pack", "train"}
    assert {path: artifacts.digest(path) for path in made} == made
    names = folder.storage.list()
    assert {"supervisor.log", "supervisor/0001/ray.log", "report.html"} <= set(names)
    for instance in folder.plan().leaders:
        (attempt,) = folder.attempts(instance.id)
        assert attempt.storage.exists(DRIVER_LOG), instance.id
    assert "attempt 1 succeeded" in folder.storage.read_bytes("supervisor.log").decode()
    assert smoke.orchestrator("logs", run, "train").stdout.startswith(f"==> {folder.storage.url}")
    assert smoke.wait_gone() == []
    left = [p.name for p in temporary.glob("orchestrator-*/*")]
    assert [name.split("-")[0] for name in left] == ["code"], "logs are removed once copied"
