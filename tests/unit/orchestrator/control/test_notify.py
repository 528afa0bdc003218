"""Who tells, and when: beside a supervisor, after one that died, and never twice."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator.control.notify import Notifier
from orchestrator.errors import BackendError
from orchestrator.ledger.notice import NoticeFolder
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import Observed
from orchestrator.ledger.store import Store
from tests.receiver import SECRET, Receiver, receiving
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe

PLAN = plan_of(recipe())
TRAIN = next(i for i in PLAN.instances if i.stage == "train")
OVER = Observed(is_alive=False)
WEBHOOK = {"webhook": "${env:HOOK}", "timeout_s": 0.3}


class World:
    """A run that tells a receiver."""

    def __init__(self, folder: Path, **notify: Any) -> None:
        self.store = Store.open(str(folder / "store"))
        self.run = RunFolder(self.store.run_storage("small"))
        where = cluster(self.store.storage.url, notify=notify or WEBHOOK)
        self.run.create(PLAN, recipe(), where, {}, {})

    def notifier(self, look_every_s: float = 0.02) -> Notifier:
        notifier = Notifier(self.store, self.run, look_every_s)
        notifier.watch()
        return notifier

    def interrupt(self) -> None:
        folder = self.run.begin_attempt(TRAIN.id)
        folder.finish(state="preempted", cause="preempted", action="resume", reason="leaves")

    def finish(self) -> None:
        for instance in PLAN.instances:
            artifact = self.store.artifact(instance.stage, instance.key)
            artifact.publish(inputs=instance.inputs, facts={}, producer={})

    def outcomes(self, hook: str) -> list[bool]:
        folder = NoticeFolder(self.run.storage)
        return [folder.storage.read_json(f"{n}/{hook}.json")["was_told"] for n in folder.names()]

    def written(self) -> bytes:
        root = self.store.storage.local_root
        assert root
        return b"".join(p.read_bytes() for p in root.rglob("*") if p.is_file())


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as receiver:
        monkeypatch.setenv("HOOK", receiver.url)
        yield receiver


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_happens_is_told_as_it_happens_and_each_thing_once(
    tmp_path: Path, receiver: Receiver
) -> None:
    world = World(tmp_path)
    notifier = world.notifier()
    world.interrupt()
    wait_for(lambda: receiver.told == ["started", "interrupted"])
    world.interrupt()
    wait_for(lambda: receiver.told[2:] == ["back", "interrupted"])
    world.finish()
    notifier.close(lambda: OVER)
    assert receiver.told[4:] == ["first_step", "done"]
    assert len(receiver.received) == 6
    assert world.outcomes("webhook") == [True] * 6
    again = world.notifier()
    again.close(lambda: OVER)
    assert len(receiver.received) == 6
    assert SECRET.encode() not in world.written()


@pytest.mark.parametrize(
    ("began_s_ago", "events"),
    [(-20, ["started", "back"]), (20, ["started", "back"]), (3600, ["back"])],
)
def test_a_run_that_begins_is_told_whatever_its_nodes_clocks_say(
    tmp_path: Path, receiver: Receiver, began_s_ago: float, events: list[str]
) -> None:
    """Of one that was at work before anybody was to be told, only what happens from now on is."""
    world = World(tmp_path)
    world.run.begin_attempt(TRAIN.id, started_at=time.time() - began_s_ago)
    world.run.begin_attempt(TRAIN.id, started_at=time.time() + 30)
    world.notifier().close(lambda: Observed(is_alive=True))
    assert receiver.told == events


def test_of_several_one_tells(tmp_path: Path, receiver: Receiver) -> None:
    world = World(tmp_path)
    notifiers = [world.notifier() for _ in range(4)]
    for _ in range(3):
        world.interrupt()
        time.sleep(0.05)
    world.finish()
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda notifier: notifier.close(lambda: OVER), notifiers))
    ids = [notice["id"] for notice in receiver.received]
    assert len(ids) == len(set(ids)) == 1 + 3 + 2 + 1 + 1
    assert receiver.told[-1] == "done"


def test_who_leaves_a_run_at_work_waits_for_nobody(tmp_path: Path, receiver: Receiver) -> None:
    world = World(tmp_path)
    teller = world.notifier()
    wait_for(lambda: world.run.storage.exists("notices/origin.json"))
    other, began_at = world.notifier(), time.monotonic()
    other.close(lambda: Observed(is_alive=True))
    assert time.monotonic() - began_at < 2
    world.interrupt()
    teller.close(lambda: Observed(is_alive=True))
    assert receiver.told == ["started", "interrupted"]


def test_what_one_that_died_had_not_told_the_next_one_does(
    tmp_path: Path, receiver: Receiver
) -> None:
    """It has recorded both and told one; nobody knows whether the other came through."""
    world = World(tmp_path)
    notifier = world.notifier()
    world.interrupt()
    wait_for(lambda: len(receiver.received) == 2)
    notifier.close(lambda: Observed(is_alive=True))
    folder = NoticeFolder(world.run.storage)
    (first,) = (n for n in folder.names() if n.startswith("interrupted"))
    folder.storage.delete(f"{first}/webhook.json")
    world.notifier().close(lambda: Observed(is_alive=True))
    assert [n["event"] for n in receiver.received] == ["started", "interrupted", "interrupted"]
    assert receiver.received[1] == receiver.received[2], "with the same id"


def test_only_what_was_asked_for_is_told(tmp_path: Path, receiver: Receiver) -> None:
    world = World(tmp_path, **WEBHOOK, events=["done", "back"])
    notifier = world.notifier()
    world.interrupt()
    world.interrupt()
    world.finish()
    notifier.close(lambda: OVER)
    assert receiver.told == ["back", "done"]


def test_a_server_that_fails_hides_nothing_from_a_command(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.script = [404] * 9
    copy = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read())"
    words = (sys.executable, "-c", copy, str(tmp_path / "told"))
    world = World(tmp_path, **WEBHOOK, command=words)
    world.finish()
    for _ in range(2):
        world.notifier().close(lambda: OVER)
    assert '"event": "done"' in (tmp_path / "told").read_text()
    assert world.outcomes("webhook") == [False]
    assert world.outcomes("command") == [True]
    assert caplog.text.count("given up: the server answers 404") == 1


def test_an_end_waits_no_longer_than_it_was_given(tmp_path: Path, receiver: Receiver) -> None:
    receiver.script = ["hang"] * 9
    world = World(tmp_path, webhook="${env:HOOK}", timeout_s=5)
    notifier = world.notifier()
    world.finish()
    began_at = time.monotonic()
    notifier.close(lambda: OVER, within_s=0.2)
    assert time.monotonic() - began_at < 2


@pytest.mark.parametrize("error", [ConnectionError("away"), BackendError("away"), OSError(5, "x")])
def test_an_end_that_cannot_be_read_at_first_is_told_once_it_can(
    tmp_path: Path, receiver: Receiver, error: Exception
) -> None:
    world = World(tmp_path)
    notifier = world.notifier()
    world.interrupt()
    wait_for(lambda: receiver.told == ["started", "interrupted"])
    world.finish()
    in_the_way = [error, error]

    def look() -> Observed:
        if in_the_way:
            raise in_the_way.pop()
        return OVER

    notifier.close(look)
    assert receiver.told[2:] == ["first_step", "done"]


def test_a_run_without_a_hook_has_no_notices(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run.move(cluster(world.store.storage.url))
    notifier = world.notifier()
    world.finish()
    notifier.close(lambda: OVER)
    assert world.run.storage.children("notices") == ()


def test_scores_and_page_are_part_of_the_end(tmp_path: Path, receiver: Receiver) -> None:
    world = World(tmp_path)
    notifier = world.notifier()
    perplexity = next(i for i in PLAN.instances if i.stage == "perplexity")
    scores = {"splits": {"test": {"model": {"perplexity": 14.1234}}}}
    artifact = world.store.artifact("perplexity", perplexity.key)
    artifact.storage.create_json("scores.json", scores)
    world.run.storage.create("report.html", b"")
    world.finish()
    notifier.close(lambda: OVER)
    (done,) = receiver.received
    assert list(done["scores"].values()) == [{"test": 14.1234}]
    assert done["text"].endswith(" 14.12")
    assert done["report"] == f"{world.run.storage.url}/report.html"


def test_a_damaged_notice_keeps_no_other_from_being_told(
    tmp_path: Path, receiver: Receiver
) -> None:
    world = World(tmp_path)
    notices = NoticeFolder(world.run.storage)
    notices.record("a-started", {"id": "x", "event": "started"})
    notices.storage.replace("a-started/notice.json", b"{torn")
    world.interrupt()
    notifier = world.notifier()
    wait_for(lambda: receiver.told == ["started", "interrupted"])
    notifier.close(lambda: OVER)
