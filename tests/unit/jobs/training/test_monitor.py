"""When ranks hang, when they must leave, and how often the store is asked about them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.attempt import StopRequestedError
from jobs.training.heartbeat import DUMP, STOP, beat_path, stacks_path
from jobs.training.monitor import RankMonitor, stacks_from_outside
from orchestrator.errors import Cause, LeaseHeldError, RunFailedError
from orchestrator.ledger.lease import Process
from orchestrator.ledger.storage import Storage
from orchestrator.spec.cluster import Retry
from tests.unit.jobs.training.countdown import rank_config

HANG_S, START_S, PROBE_S = 60.0, 600.0, 10.0


class Counting(Storage):
    """A store that counts what it is asked."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.calls = Counter[str]()

    def read_bytes(self, path: str) -> bytes:
        self.calls[path.split("/")[0]] += 1
        return super().read_bytes(path)


@dataclass
class World:
    """An attempt whose ranks are what a test writes, watched by a clock that it sets."""

    folder: Path
    num_ranks: int = 4
    now: float = 0.0
    events: list[str] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    done: list[float] = field(default_factory=list)
    lost: str = ""
    draining: set[str] = field(default_factory=set)
    grows: bool = False
    meanwhile: Callable[[], None] = lambda: None
    """What happens while the ranks write their stacks."""

    def __post_init__(self) -> None:
        self.config = rank_config(self.folder)
        self.storage = Counting(self.config.record_url)
        self.record = SimpleNamespace(storage=self.storage)
        retry = Retry(hang_timeout_s=HANG_S, start_timeout_s=START_S)
        self.cluster = SimpleNamespace(retry=retry)
        self.ticks = [0] * self.num_ranks
        self.monitor = RankMonitor(
            self,  # as the attempt
            self.config,
            self.num_ranks,
            probe_every_s=PROBE_S,
            dump_wait_s=0.0,
            clock=lambda: self.now,
            sleep=lambda _: self.meanwhile(),
            draining=lambda: self.draining,
            grows=lambda: self.grows,
        )

    def check(self) -> None:
        if self.lost:
            raise LeaseHeldError(self.lost)

    def event(self, kind: str, **fields: Any) -> None:
        self.events.append(kind)
        self.fields |= fields

    def progress(self, done: float, *_: Any, **__: float) -> None:
        self.done.append(done)

    def beat(
        self, rank: int, phase: str = "training", host: str = "elsewhere/0", **more: Any
    ) -> None:
        """Write a rank's heartbeat."""
        process = {"host": host, "pid": 1, "started_at": 0.0}
        beat = {"at": self.now, "ticks": self.ticks[rank], "files": 0, "phase": phase}
        self.write(beat_path(rank), {**beat, "process": process, **more})

    def write(self, path: str, value: Any) -> None:
        self.storage.replace(path, json.dumps(value).encode())

    def work(self, *ranks: int, phase: str = "training") -> None:
        """Let some ranks do something."""
        for rank in ranks:
            self.ticks[rank] += 1
            self.beat(rank, phase)

    def wait(self, seconds: float, working: tuple[int, ...] = (), phase: str = "training") -> None:
        """Look once a second for some time, while some ranks work."""
        for _ in range(int(seconds)):
            self.now += 1.0
            self.work(*working, phase=phase)
            self.monitor.look()

    def say(self, step: int = 5, **more: Any) -> None:
        """Write rank 0's live.json."""
        live = {"step": step, "rates": {}, "refused": [], "resumed_from": ""}
        self.write("live.json", {**live, "phases": {"first_step": 1.0}, **more})


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.work(*range(made.num_ranks))
    return made


def test_ranks_that_work_do_not_hang(world: World) -> None:
    world.wait(5 * HANG_S, working=(0, 1, 2, 3))
    assert world.events == []


def test_ranks_that_stand_still_are_ended_after_the_timeout(world: World) -> None:
    world.wait(5, working=(0, 1, 2, 3))
    world.ticks[2] -= 1
    world.beat(2)
    since = world.now
    with pytest.raises(RunFailedError, match="rank 2 made no progress for") as raised:
        world.wait(3 * HANG_S)
    assert raised.value.cause is Cause.COMM_HANG
    assert HANG_S < world.now - since <= HANG_S + 2 * PROBE_S + 1
    assert world.events == ["hang"]
    assert world.fields["rank"] == 2
    assert world.storage.exists(DUMP)


def test_a_rank_that_is_silent_is_the_suspect(world: World) -> None:
    world.ticks[0] = -5  # less than rank 3 has done, which has no heartbeat any more
    beating = Beating(world, (0, 1, 2))
    world.meanwhile = beating.beat
    with pytest.raises(RunFailedError, match="rank 3 made no progress"):
        beating.wait(3 * HANG_S)


@dataclass
class Beating:
    """Ranks that wait for another: their hearts beat, and they do nothing."""

    world: World
    ranks: tuple[int, ...]

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.world.wait(1)
            self.beat()

    def beat(self) -> None:
        self.world.now += 1.0
        for rank in self.ranks:
            self.world.beat(rank)


@pytest.mark.parametrize("ahead_s", [-3600.0, -10.0, 10.0, 3600.0])
def test_a_rank_whose_clock_is_another_is_not_the_suspect(world: World, ahead_s: float) -> None:
    """The clocks of two machines are not compared."""
    world.ticks[2] -= 1

    def beat() -> None:
        world.now += 1.0
        for rank in range(4):
            world.beat(rank, at=world.now + ahead_s * (rank == 1))

    beat()
    world.meanwhile = beat
    with pytest.raises(RunFailedError, match="rank 2 made no progress"):
        world.wait(3 * HANG_S)


def test_a_rank_that_waits_for_the_upload_of_another_does_not_hang(world: World) -> None:
    for files in range(40):
        world.beat(3, files=files)
        world.wait(PROBE_S)
    assert world.events == []


def test_ranks_that_load_or_save_get_more_time(world: World) -> None:
    world.work(*range(4), phase="saving")
    world.wait(START_S - 2)
    assert world.events == []
    with pytest.raises(RunFailedError):
        world.wait(3 * PROBE_S)


def test_one_rank_that_still_loads_gives_all_of_them_more_time(world: World) -> None:
    world.work(3, phase="starting")
    world.wait(3 * HANG_S)
    assert world.events == []


def test_ranks_that_never_start_are_ended(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.wait(START_S - 1)
    with pytest.raises(RunFailedError, match="rank 0 made no progress"):
        world.wait(3 * PROBE_S)


def test_a_rank_that_waits_for_a_file_is_named_with_it(world: World) -> None:
    """Whoever waits for that rank is not to blame, nor is a file that was answered meanwhile."""
    waits_for = {"path": "/mnt/a/x", "seconds": 50.0}
    world.beat(2, waits_for=waits_for)
    world.beat(3, waits_for={"path": "/mnt/b/y", "seconds": 60.0})

    def beat() -> None:
        world.beat(2, waits_for={**waits_for, "seconds": 56.0})
        world.beat(3, waits_for=None)

    world.meanwhile = beat
    with pytest.raises(RunFailedError, match=r"rank 2: /mnt/a/x: does not answer") as raised:
        world.wait(3 * HANG_S)
    assert raised.value.cause is Cause.STORAGE


@pytest.mark.parametrize(
    "late", [{"path": "/mnt/a/y", "seconds": 9.0}, {"path": "/mnt/a/x", "seconds": 2.0}, None]
)
def test_files_that_answer_meanwhile_are_no_cause(
    world: World, late: dict[str, object] | None
) -> None:
    world.beat(2, waits_for={"path": "/mnt/a/x", "seconds": 8.0})
    world.meanwhile = lambda: world.beat(2, waits_for=late)
    with pytest.raises(RunFailedError) as raised:
        world.wait(3 * HANG_S)
    assert raised.value.cause is Cause.COMM_HANG


def test_a_local_rank_that_hangs_is_looked_into_and_killed(world: World) -> None:
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    process = Process.of(victim.pid)
    world.beat(1, process=process.__dict__)
    with pytest.raises(RunFailedError):
        world.wait(3 * HANG_S)
    assert victim.wait(20) == -9
    assert world.storage.exists(stacks_path(1))
    assert not world.storage.exists(stacks_path(2)), "that rank is on another machine"


def test_stacks_that_a_rank_wrote_itself_are_kept(world: World) -> None:
    world.beat(1, process=Process.current().__dict__ | {"start_ticks": 1})
    world.storage.replace(stacks_path(1), b"its own")
    with pytest.raises(RunFailedError):
        world.wait(3 * HANG_S)
    assert world.storage.read_bytes(stacks_path(1)) == b"its own"


def test_stacks_of_a_process_that_is_gone_say_so() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert stacks_from_outside(ended.pid)


@pytest.mark.parametrize("num_ranks", [4, 64])
def test_a_look_costs_the_same_for_any_number_of_ranks(tmp_path: Path, num_ranks: int) -> None:
    world = World(tmp_path, num_ranks)
    world.work(*range(num_ranks))
    world.say()
    world.storage.calls.clear()
    world.wait(100, working=(0,))
    assert world.storage.calls == {"beats": 100, "live.json": 100}


def test_all_heartbeats_are_read_now_and_then_while_rank_0_stands_still(tmp_path: Path) -> None:
    world = World(tmp_path, 64)
    world.work(*range(64))
    world.wait(1)
    world.storage.calls.clear()
    world.wait(5 * PROBE_S)
    assert world.storage.calls["beats"] <= 50 + 5 * 64


def test_looks_come_once_a_second(world: World) -> None:
    world.monitor.look()
    before = sum(world.storage.calls.values())
    for _ in range(7):
        world.now += 0.125
        world.monitor.look()
    assert sum(world.storage.calls.values()) == before
    world.now += 0.125
    world.monitor.look()
    assert sum(world.storage.calls.values()) > before


def test_a_lost_lease_ends_every_look(world: World) -> None:
    world.monitor.look()
    world.lost = "lease 1 was lost to 2"
    with pytest.raises(LeaseHeldError):
        world.monitor.look()


def test_progress_is_passed_on_from_the_first_step_on(world: World) -> None:
    world.say(0, phases={"load": 1.0})
    world.wait(1, working=(0,))
    assert (world.events, world.done) == ([], [])
    world.say(5, refused=["step 9: missing"], resumed_from="step-00000004-a0001")
    world.wait(2, working=(0,))
    assert world.events == ["checkpoint_refused", "training"]
    assert world.fields["resumed_from"] == "step-00000004-a0001"
    assert world.done == [5, 5]
    world.say(12)
    world.monitor.report()  # the ranks have ended
    assert world.done == [5, 5, 12]


@pytest.mark.parametrize(("then_s", "is_told"), [(105.0, False), (111.0, True), (89.0, True)])
def test_the_time_between_checkpoints_is_told_when_it_changes(
    world: World, then_s: float, is_told: bool
) -> None:
    for interval_s in (100.0, then_s):
        world.say(checkpoint_interval={"interval_s": interval_s})
        world.wait(1, working=(0,))
    assert world.events.count("checkpoint_interval") == 1 + is_told


def test_an_order_to_stop_is_given_and_its_end_is_seen(world: World) -> None:
    assert not world.monitor.stopped()
    world.monitor.ask_to_stop()
    assert world.storage.exists(STOP)
    assert world.events == ["stop_asked"]
    world.say(stopped=True)
    assert world.monitor.stopped()


def test_ranks_on_a_node_that_goes_away_must_leave(world: World) -> None:
    world.beat(3, host="spot-7/boot")
    assert not world.monitor._must_leave(set())
    assert not world.monitor._must_leave({"spot-8"})
    assert world.monitor._must_leave({"spot-7"})


def test_a_notice_of_preemption_asks_the_driver_to_leave(world: World) -> None:
    world.draining = {"spot-7"}
    world.beat(2, host="spot-7/boot")
    with pytest.raises(StopRequestedError):
        world.wait(1)
    assert world.events == ["preemption_notice"]


def test_a_training_makes_way_for_more_ranks_once_it_has_made_steps(world: World) -> None:
    world.grows = True
    world.beat(0)
    world.wait(2)
    assert world.events == [], "what loads or compiles is not interrupted for that"
    world.say(phases={"first_step": 1.0})
    with pytest.raises(StopRequestedError):
        world.wait(1)
    assert world.events[-1] == "resize_asked"


def test_a_store_out_of_reach_is_no_hang(world: World) -> None:
    beats = Path(world.config.record_url) / "beats"
    beats.rename(beats.with_name("gone"))
    beats.write_text("in the way")
    world.wait(3 * HANG_S)
    assert world.events == []
