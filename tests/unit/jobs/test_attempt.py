"""One attempt of a stage: leases, heartbeat, events, and how a process tells what happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.attempt import Attempt, _heartbeat, _run, parse
from orchestrator.errors import ExitCode, LeaseHeldError, RequestError
from orchestrator.ledger.artifact import Artifact
from orchestrator.ledger.attempt import FAULT_ORDER, LOCAL_FOLDER, AttemptFolder
from orchestrator.ledger.bucket_path import BucketPath
from orchestrator.ledger.lease import acquire, current
from orchestrator.ledger.path_store import TEMPORARY
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.store import Store
from orchestrator.spec.cluster import Resources
from orchestrator.spec.recipe import Recipe
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe, swept
from tests.unit.source import ROOT

TIMEOUT_S = 60.0
SCRIPT = """\
import os, signal, sys, time
from pathlib import Path
from jobs.attempt import run_stage
from orchestrator.errors import DataError, RequestError

def work(attempt):
    {body}

sys.exit(run_stage("corpus", work))
"""


class Scene:
    """A run whose corpus is to be made, by a process of its own."""

    def __init__(self, folder: Path, asked: Recipe | None = None, stage: str = "corpus") -> None:
        asked = asked or recipe()
        self.folder = folder
        self.store = Store.open(str(folder / "store"))
        self.run = RunFolder(self.store.run_storage("small"))
        self.plan = plan_of(asked)
        where = cluster(str(folder / "store"), retry={"heartbeat_timeout_s": 3})
        self.run.create(self.plan, asked, where, {}, {})
        self.instance = next(i for i in self.plan.instances if i.stage == stage)

    @property
    def artifact(self) -> Artifact:
        return self.store.artifact(self.instance.stage, self.instance.key)

    def publish(self, *ids: str) -> None:
        """As others would have."""
        for instance in map(self.plan.instance, ids):
            artifact = self.store.artifact(instance.stage, instance.key)
            artifact.publish(inputs=instance.inputs, facts={}, producer={})

    @property
    def attempt(self) -> AttemptFolder:
        return self.run.attempts(self.instance.id)[-1]

    def start(self, *body: str) -> subprocess.Popen[str]:
        """An attempt whose work is these lines, under way."""
        number = self.run.begin_attempt(self.instance.id).number
        script = self.folder / "stage.py"
        script.write_text(SCRIPT.format(body="\n    ".join(body)))
        words = ("--store", str(self.folder / "store"), "--run", "small")
        words += ("--instance", self.instance.id, "--attempt", str(number))
        return subprocess.Popen(
            [sys.executable, str(script), *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )

    def run_to_end(self, *body: str) -> tuple[int, str]:
        """Its exit code and what it wrote on stderr."""
        process = self.start(*body)
        _, errors = process.communicate(timeout=TIMEOUT_S)
        return process.returncode, errors

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.attempt.events()]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def await_true(is_so: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_work_that_is_done_is_published_under_its_lease(scene: Scene) -> None:
    code, errors = scene.run_to_end("attempt.out.create('data', b'x')", "return {'n': 3}")
    assert code == 0, errors
    manifest = scene.artifact.storage.read_json("MANIFEST.json")
    assert manifest["facts"] == {"n": 3}
    assert manifest["producer"]["attempt"] == manifest["producer"]["lease"] == 1
    assert manifest["producer"]["instance"] == scene.instance.id
    assert scene.kinds() == ["begin", "published"]
    lease = current(scene.artifact.storage)
    assert lease is not None
    assert lease.holder == f"small/{scene.instance.id}/0001"
    assert lease.released_at is not None


@pytest.fixture
def group(tmp_path: Path) -> Callable[[str], Scene]:
    """Two sizes of codebooks, a stage of which both are done by one attempt."""

    def made(stage: str) -> Scene:
        scene = Scene(tmp_path, swept(recipe(), **{"tokenizer.num_clusters": [20, 40]}), stage)
        scene.publish(*(i.id for i in scene.plan.instances if i.stage in ("corpus", "encoder")))
        return scene

    return made


def test_what_is_published_before_the_end_is_not_made_again(
    group: Callable[[str], Scene],
) -> None:
    """Whether the attempt is killed after it or ends with an error."""
    scene = group("codebook")
    first, second = scene.plan.group(scene.instance.id)
    body = ("attempt.outs[0].create('a', b'')", "attempt.publish(attempt.keys[0], {'n': 1})")
    code, _ = scene.run_to_end(*body, "os.kill(os.getpid(), signal.SIGKILL)")
    assert code == -signal.SIGKILL
    assert scene.store.artifact("codebook", first.key).facts == {"n": 1}
    said = "print(attempt.keys, file=sys.stderr)"
    code, errors = scene.run_to_end(said, "return {'per_key': {attempt.keys[0]: {'n': 2}}}")
    assert code == 0, errors
    assert f"('{second.key}',)" in errors
    assert scene.store.artifact("codebook", second.key).facts == {"n": 2}
    assert scene.store.artifact("codebook", first.key).facts == {"n": 1}


def test_what_lacks_something_fails_nothing_beside_it(group: Callable[[str], Scene]) -> None:
    scene = group("tokenize")
    good, bad = scene.plan.group(scene.instance.id)
    scene.publish(good.needs["codebook"])
    code, errors = scene.run_to_end("return {'n': len(attempt.keys)}")
    lacks = f"error: {bad.id} is made of {bad.needs['codebook']}, which is not there; see why that "
    assert (code, errors.splitlines()[-1]) == (1, f"{lacks}has failed")
    assert scene.store.artifact("tokenize", good.key).facts == {"n": 1}
    assert scene.run_to_end("assert False")[1].splitlines()[-1] == f"{lacks}has failed"


def test_every_stage_logs_its_begin_and_what_came_of_it(scene: Scene) -> None:
    facts = "{'num_shards': 3, 'kept_hours': 1 / 3, 'sources': {'a': {}}, 'kind': 'x'}"
    code, errors = scene.run_to_end("attempt.out.create('data', b'x')", f"return {facts}")
    assert code == 0, errors
    first, last = (line.partition("jobs.attempt ")[2] for line in errors.splitlines())
    assert first == f"{scene.instance.id}: attempt 1 begins"
    said = "num_shards 3, kept_hours 0.333333, kind x"
    assert last == f"{scene.instance.id} is done: {said}"


def test_what_killed_attempts_left_half_written_is_swept(scene: Scene) -> None:
    left = Path(scene.artifact.storage.url, "shards", f"{TEMPORARY}1")
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    beside = f"Path({str(left)!r}).with_name('{TEMPORARY}2')"
    code, errors = scene.run_to_end(
        f"assert not Path({str(left)!r}).exists()",
        f"{beside}.parent.mkdir(parents=True, exist_ok=True)",
        f"{beside}.write_bytes(b'of a worker that was killed')",
        "return {}",
    )
    assert code == 0, errors
    assert not list(left.parent.glob(f"{TEMPORARY}*"))


def test_an_attempt_has_the_recipes_of_all_variants_that_need_it(tmp_path: Path) -> None:
    asked = swept(recipe(), **{"split.valid": [0.02, 0.1]})
    scene = Scene(tmp_path, asked)
    shares = "[r.split.valid for r in attempt.all_recipes]"
    code, errors = scene.run_to_end(f"return {{'shares': {shares}}}")
    assert code == 0, errors
    assert scene.artifact.storage.read_json("MANIFEST.json")["facts"] == {"shares": [0.02, 0.1]}


def test_what_is_complete_is_not_done_again(scene: Scene) -> None:
    scene.artifact.publish(inputs=scene.instance.inputs, facts={}, producer={})
    code, _ = scene.run_to_end("raise AssertionError('it worked')")
    assert code == 0
    assert current(scene.artifact.storage) is None


@pytest.mark.parametrize(
    ("body", "code", "last"),
    [
        ("raise RequestError('corpus: wrong')", ExitCode.BAD_REQUEST, "error: corpus: wrong"),
        ("raise DataError('no speech')", ExitCode.FAILED, "error: no speech"),
        ("raise ValueError('ours')", ExitCode.FAILED, "ValueError: ours"),
        (
            "os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)",
            ExitCode.STOPPED,
            "error: stopped by a signal",
        ),
    ],
)
def test_an_end_has_its_exit_code_and_one_last_line(
    scene: Scene, body: str, code: int, last: str
) -> None:
    ended, errors = scene.run_to_end(body)
    assert (ended, errors.splitlines()[-1]) == (code, last)
    lease = current(scene.artifact.storage)
    assert lease is not None
    assert lease.released_at is not None
    assert not scene.artifact.is_complete()
    assert "begin" in scene.kinds()


def test_a_key_that_somebody_works_on_is_left_alone(scene: Scene) -> None:
    acquire(scene.artifact.storage, holder="other/corpus/0001", timeout_s=60)
    code, errors = scene.run_to_end("return {}")
    assert code == ExitCode.LEASE_HELD
    assert "held by other/corpus/0001" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_second_signal_does_not_cut_the_leave_taking_short(
    scene: Scene, number: signal.Signals
) -> None:
    process = scene.start(
        "try:",
        "    Path(attempt.folder, 'begun').touch(); time.sleep(60)",
        "finally:",
        "    os.kill(os.getpid(), signal.SIGTERM); attempt.event('left')",
    )
    await_true(lambda: (Path(scene.attempt.storage.url) / "begun").exists(), "it never began")
    process.send_signal(number)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == ExitCode.STOPPED
    assert scene.kinds()[-1] == "left"


def test_a_lease_that_is_lost_ends_the_attempt_without_an_artifact(scene: Scene) -> None:
    process = scene.start(
        "while True:",
        "    attempt.check(); time.sleep(0.01)",
    )
    await_true(lambda: current(scene.artifact.storage), "no lease")
    scene.artifact.storage.create("lease/000002.json", b"{}")
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == ExitCode.LEASE_HELD
    assert "lease 1 was lost to 2; this attempt must end" in errors
    assert not scene.artifact.is_complete()


@pytest.mark.parametrize(
    ("fault", "code"),
    [({"kind": "driver"}, -signal.SIGKILL), ({"kind": "rank"}, 0)],
)
def test_a_drill_kills_the_driver_it_names(scene: Scene, fault: dict[str, str], code: int) -> None:
    process = scene.start("time.sleep(3 if attempt.event('x') is None else 0)", "return {}")
    await_true(lambda: scene.kinds(), "it never began")
    scene.attempt.storage.create_json(FAULT_ORDER, fault)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code


def attempt_in(folder: Path, **settings: Any) -> Attempt:
    """An attempt in a folder, without a run around it."""
    return Attempt(
        recipe=recipe(),
        cluster=cluster(str(folder), **settings),
        resources=Resources(),
        artifacts=(Artifact("corpus", "0" * 64, Storage(str(folder / "corpus"))),),
        upstreams=({},),
        lease_n=1,
        folder=folder,
        record=AttemptFolder(1, Storage(str(folder / "record"))),
    )


def test_events_are_written_in_whole_segments_and_none_twice(tmp_path: Path) -> None:
    attempt = attempt_in(tmp_path)
    attempt.flush()
    assert attempt.record.storage.children() == ()
    attempt.event("one", n=1)
    attempt.event("two")
    attempt.flush()
    attempt.event("three")
    attempt.flush()
    attempt.flush()
    assert attempt.record.storage.children() == ("events-0001.jsonl", "events-0002.jsonl")
    assert [event["kind"] for event in attempt.record.events()] == ["one", "two", "three"]
    assert next(iter(attempt.record.events()))["n"] == 1


def test_events_wait_for_a_store_that_is_away(tmp_path: Path) -> None:
    attempt = attempt_in(tmp_path)
    attempt.event("one")
    (tmp_path / "record").write_text("in the way")
    with pytest.raises(OSError, match="record"):
        attempt.flush()
    (tmp_path / "record").unlink()
    attempt.flush()
    assert [event["kind"] for event in attempt.record.events()] == ["one"]


def test_progress_is_written_at_most_twice_a_second_and_always_at_the_end(tmp_path: Path) -> None:
    attempt = attempt_in(tmp_path)
    attempt.progress(1, 3, "shards", per_s=2.0)
    assert attempt.record.progress["rates"] == {"per_s": 2.0}
    attempt.progress(2, 3, "shards")
    assert attempt.record.progress["done"] == 1
    attempt.progress(3, 3, "shards")
    assert attempt.record.progress["done"] == 3
    attempt._progressed_at -= 1
    attempt.progress(2, 3, "shards")
    assert attempt.record.progress["done"] == 2


def test_the_heartbeat_keeps_the_lease_and_flushes_at_the_end(tmp_path: Path) -> None:
    attempt = attempt_in(tmp_path, retry={"heartbeat_timeout_s": 3})
    held = acquire(attempt.out, holder="a", timeout_s=60)
    before = held.lease.heartbeat_at
    with _heartbeat(attempt, [held]):
        await_true(lambda: held.lease.heartbeat_at > before, "no heartbeat")
        attempt.event("last")
    assert [event["kind"] for event in attempt.record.events()][-1] == "last"
    attempt.check()
    assert [t.name for t in threading.enumerate() if "_beat" in t.name] == []


def test_a_store_out_of_reach_is_no_lost_lease(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attempt = attempt_in(tmp_path, retry={"heartbeat_timeout_s": 3})
    (tmp_path / "record").write_text("in the way")
    attempt.event("one")
    with _heartbeat(attempt, []):
        await_true(lambda: "the store is out of reach" in caplog.text, "no warning")
        time.sleep(1.2)  # two more looks, of which the log need not tell
        (tmp_path / "record").unlink()
        await_true(lambda: list(attempt.record.events()), "the store was back")
    assert caplog.text.count("the store is out of reach") == 1
    attempt.check()


def test_a_lost_lease_is_told_at_the_next_check(tmp_path: Path) -> None:
    attempt = attempt_in(tmp_path, retry={"heartbeat_timeout_s": 3})
    held = acquire(attempt.out, holder="a", timeout_s=60)
    attempt.out.create("lease/000002.json", b"{}")
    with _heartbeat(attempt, [held]):
        await_true(lambda: attempt._lost, "nobody noticed")
        with pytest.raises(LeaseHeldError, match="lease 1 was lost to 2"):
            attempt.check()


def test_recordings_and_models_are_where_the_cluster_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEECH", str(tmp_path))
    attempt = attempt_in(
        tmp_path,
        data={
            "speech": "${env:SPEECH}",
            "tars": {"root": "${env:SPEECH}", "container": "tar"},
            "bucket": "s3://bucket/corpus/",
            "gone": str(tmp_path / "gone"),
        },
        models={"lm": "${env:SPEECH}/lm"},
    )
    assert attempt.data_source("speech") == (tmp_path, "folder")
    assert attempt.data_source("tars") == (tmp_path, "tar")
    assert attempt.data_source("bucket") == (BucketPath("s3://bucket/corpus"), "folder")
    assert attempt.model_source("lm") == f"{tmp_path}/lm"
    assert attempt.model_source("facebook/opt-125m") == "facebook/opt-125m"
    with pytest.raises(RequestError, match=r"data\.other: missing; map the source to its folder"):
        attempt.data_source("other")
    with pytest.raises(RequestError, match=r"data\.gone: .*/gone is not a folder; check the path"):
        attempt.data_source("gone")


def test_the_manifest_names_the_versions_that_made_it(scene: Scene) -> None:
    assert scene.run_to_end("return {'per_key': {attempt.keys[0]: {'own': 1}}, 'all': 2}")[0] == 0
    manifest = json.loads(scene.artifact.storage.read_bytes("MANIFEST.json"))
    assert manifest["facts"] == {"all": 2, "own": 1}
    assert "torch" in manifest["producer"]["versions"]


@pytest.mark.parametrize(
    ("body", "cause", "message"),
    [
        ("raise RequestError('first line\\na: b; c')", "bad_request", "a: b; c"),
        ("raise DataError('no speech')", "bad_data", "no speech"),
        ("raise OSError(28, 'full')", "storage", "OSError: [Errno 28] full"),
        ("raise KeyError('x')", "error", "KeyError: 'x'"),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", None, None),
    ],
)
def test_a_driver_records_why_it_failed(
    scene: Scene, body: str, cause: str | None, message: str | None
) -> None:
    scene.run_to_end(body)
    failure = scene.attempt.failure
    assert (failure.get("cause"), failure.get("message")) == (cause, message)
    assert scene.kinds() == (["begin", "failed"] if cause else ["begin"])


def test_a_driver_without_a_store_fails_all_the_same() -> None:
    words = ["--store", "ftpz://x", "--run", "r", "--instance", "corpus-0", "--attempt", "1"]
    script = "import sys; from jobs.attempt import run_stage; sys.exit(run_stage('corpus', dict))"
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.BAD_REQUEST
    assert "the cause could not be recorded" in done.stderr


def test_logs_are_written_where_the_supervisor_collects_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is no path has no folder for them."""
    monkeypatch.setenv(LOCAL_FOLDER, str(tmp_path / "attempts" / "0001"))
    url = "memory://attempt-folder"
    run, plan = RunFolder(Store.open(url).run_storage("small")), plan_of(recipe())
    run.create(plan, recipe(), cluster(url), {}, {})
    corpus = next(i.id for i in plan.instances if i.stage == "corpus")
    words = ["--store", url, "--run", "small", "--instance", corpus, "--attempt", "1"]
    folders: list[Path] = []

    def work(attempt: Attempt) -> dict[str, Any]:
        folders.append(attempt.folder)
        return {}

    _run("corpus", work, parse("corpus", words))
    assert folders == [tmp_path / "attempts" / "0001"]
