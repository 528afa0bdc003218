"""One attempt at a time has the right to a key, and a later one fences off the earlier."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from orchestrator.errors import LeaseHeldError
from orchestrator.ledger import lease as leases
from orchestrator.ledger.lease import Lease, Process, Watch, acquire, current
from orchestrator.ledger.storage import Storage, to_json

FORK = multiprocessing.get_context("fork")
TIMEOUT_S = 60.0
ELSEWHERE = Process(host="another-machine/0", pid=1, started_at=0.0)


def taken(storage: Storage, **how: object) -> None:
    """Lease 1 as some other holder wrote it."""
    lease = Lease(number=1, holder="run/train", process=ELSEWHERE, heartbeat_at=time.time())
    storage.create_json("lease/000001.json", asdict(replace(lease, **how)))


def test_the_first_lease_has_number_one(storage: Storage) -> None:
    assert current(storage) is None
    held = acquire(storage, holder="run/train/1", timeout_s=TIMEOUT_S)
    assert held.number == 1
    assert current(storage) == held.lease
    assert held.lease.process == Process.current()


def test_a_held_lease_is_refused_with_its_holder(storage: Storage) -> None:
    acquire(storage, holder="run/train/1", timeout_s=TIMEOUT_S)
    with pytest.raises(LeaseHeldError) as raised:
        acquire(storage, holder="other", timeout_s=TIMEOUT_S)
    assert str(raised.value) == f"{storage.url}: held by run/train/1 (lease 1)"


def test_a_released_lease_is_free_at_once(storage: Storage) -> None:
    acquire(storage, holder="a", timeout_s=TIMEOUT_S).release()
    lease = current(storage)
    assert lease is not None
    assert not lease.is_open
    assert leases.live(storage, TIMEOUT_S) is None
    assert acquire(storage, holder="b", timeout_s=TIMEOUT_S).number == 2


def test_beating_moves_the_heartbeat(storage: Storage) -> None:
    held = acquire(storage, holder="a", timeout_s=TIMEOUT_S)
    before = held.lease.heartbeat_at
    time.sleep(0.01)
    held.beat()
    lease = current(storage)
    assert lease is not None
    assert lease.heartbeat_at > before


@pytest.mark.parametrize("stray", [".nfs00000000022c0a1b00000012", "README", "old.json"])
def test_a_stray_file_among_leases_stops_no_heart(storage: Storage, stray: str) -> None:
    held = acquire(storage, holder="run/train/1", timeout_s=TIMEOUT_S)
    storage.create(f"lease/{stray}", b"")
    held.beat()
    assert current(storage) == held.lease


def test_a_lost_lease_is_noticed_by_the_next_beat(storage: Storage) -> None:
    held = acquire(storage, holder="a", timeout_s=TIMEOUT_S)
    held.release()
    acquire(storage, holder="b", timeout_s=TIMEOUT_S)
    with pytest.raises(LeaseHeldError) as raised:
        held.beat()
    assert str(raised.value) == (f"{storage.url}: lease 1 was lost to 2; this attempt must end")


@dataclass
class Clock:
    """A watcher's own, which a test sets."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("ahead_s", [-3600.0, -6.0, 0.0, 6.0, 3600.0])
def test_a_heartbeat_elsewhere_is_timed_by_the_watchers_clock(
    storage: Storage, ahead_s: float
) -> None:
    """Whatever the holder's clock says, and whether it is set meanwhile."""
    taken(storage, heartbeat_at=time.time() + ahead_s)
    watch = Watch(clock := Clock())
    for seconds in (0.0, TIMEOUT_S - 1):
        clock.now += seconds
        assert watch.live(storage, TIMEOUT_S) is not None
    beat(storage, heartbeat_at=time.time() - ahead_s)
    for seconds in (0.9, 0.9 * TIMEOUT_S):
        clock.now += seconds
        assert watch.live(storage, TIMEOUT_S) is not None, "it has beaten since"
    clock.now += TIMEOUT_S
    assert watch.live(storage, TIMEOUT_S) is None


def beat(storage: Storage, **how: object) -> None:
    lease = current(storage)
    assert lease is not None
    storage.replace("lease/000001.json", to_json(asdict(replace(lease, **how))))


@pytest.mark.parametrize("ahead_s", [-3600.0, 0.0, 3600.0])
def test_a_silent_holder_elsewhere_is_watched_for_the_timeout_and_followed(
    storage: Storage, ahead_s: float
) -> None:
    taken(storage, heartbeat_at=time.time() + ahead_s)
    began = time.monotonic()
    assert acquire(storage, holder="b", timeout_s=0.3).number == 2
    assert 0.3 <= time.monotonic() - began < 3


@pytest.mark.parametrize("ahead_s", [-3600.0, 0.0, 3600.0])
def test_a_holder_elsewhere_whose_heart_beats_keeps_its_lease(
    storage: Storage, ahead_s: float
) -> None:
    taken(storage, heartbeat_at=time.time() + ahead_s)
    beats = threading.Timer(0.3, beat, (storage,), {"heartbeat_at": time.time() - ahead_s})
    beats.start()
    with pytest.raises(LeaseHeldError):
        acquire(storage, holder="b", timeout_s=TIMEOUT_S)
    beats.join()


def test_who_was_seen_to_be_dead_is_fenced_off_for_those_who_come_next(storage: Storage) -> None:
    taken(storage)
    watch = Watch(clock := Clock())
    watch.live(storage, TIMEOUT_S)
    clock.now += TIMEOUT_S
    watch.clear(storage, TIMEOUT_S)
    with pytest.raises(LeaseHeldError):
        leases.require_newest(storage, 1)
    assert acquire(storage, holder="b", timeout_s=TIMEOUT_S).number == 3


def test_the_age_of_a_heartbeat_is_that_of_its_object(storage: Storage) -> None:
    taken(storage, heartbeat_at=time.time() - 10 * TIMEOUT_S)
    before = storage.list()
    assert leases.live(storage, TIMEOUT_S) is not None
    time.sleep(1.1)  # some stores count whole seconds
    assert storage.age_s("lease/000001.json") >= 1.0
    assert leases.live(storage, 0.5) is None
    assert storage.list() == before


def test_on_this_machine_a_silent_holder_that_lives_keeps_it(storage: Storage) -> None:
    taken(storage, process=Process.current(), heartbeat_at=time.time() - 10 * TIMEOUT_S)
    with pytest.raises(LeaseHeldError):
        acquire(storage, holder="b", timeout_s=TIMEOUT_S)


def test_the_lease_of_a_dead_process_is_free_at_once(storage: Storage) -> None:
    child = FORK.Process(target=time.sleep, args=(60,))
    child.start()
    assert child.pid is not None
    taken(storage, process=Process.of(child.pid))
    with pytest.raises(LeaseHeldError):
        acquire(storage, holder="b", timeout_s=TIMEOUT_S)
    child.kill()
    _wait_until_dead(child.pid)  # and not reaped: a zombie
    assert acquire(storage, holder="b", timeout_s=TIMEOUT_S).number == 2
    child.join()


def _wait_until_dead(pid: int) -> None:
    stat = Path(f"/proc/{pid}/stat")
    while stat.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        time.sleep(0.005)


def test_a_pid_that_is_someone_elses_by_now_is_dead(storage: Storage) -> None:
    me = Process.current()
    reused = replace(me, start_ticks=me.start_ticks - 1)
    assert reused.is_alive() is False
    of_an_earlier_version = replace(me, start_ticks=0, started_at=me.started_at - 100)
    assert of_an_earlier_version.is_alive() is False
    assert replace(of_an_earlier_version, started_at=me.started_at).is_alive() is True
    taken(storage, process=reused)
    assert acquire(storage, holder="b", timeout_s=TIMEOUT_S).number == 2


@pytest.mark.parametrize("step_s", [-3600.0, -6.0, 6.0, 3600.0])
def test_a_process_is_the_same_after_the_clock_was_set(storage: Storage, step_s: float) -> None:
    """What the system says of its start moves with the clock."""
    me = Process.current()
    before = replace(me, started_at=me.started_at + step_s)
    assert before.is_alive() is True
    assert before == me
    taken(storage, process=before)
    with pytest.raises(LeaseHeldError):
        acquire(storage, holder="b", timeout_s=TIMEOUT_S)


def test_the_age_of_a_process_is_no_difference_of_two_clocks() -> None:
    me = Process.current()
    age_s = replace(me, started_at=me.started_at + 3600).age_s()
    assert age_s == pytest.approx(time.time() - me.started_at, abs=2)
    assert replace(me, start_ticks=0, started_at=time.time() + 9).age_s() == 0.0


def test_a_record_of_a_later_version_is_read(storage: Storage) -> None:
    me = Process.current()
    assert Process.from_json({**asdict(me), "thumb": 5}) == me


def test_a_process_knows_itself_and_not_those_elsewhere() -> None:
    assert Process.current().is_alive() is True
    assert Process.current().pid == os.getpid()
    assert ELSEWHERE.is_alive() is None
    gone = Process(host=leases.this_host(), pid=2**22 + 1, started_at=0.0)
    assert gone.is_alive() is False


def _race(root: str, together: Barrier, tell: Connection) -> None:
    together.wait()
    try:
        tell.send(acquire(Storage(root), holder="racer", timeout_s=TIMEOUT_S).number)
    except LeaseHeldError:
        tell.send(None)
    together.wait()  # stay alive until everybody has tried


@pytest.mark.parametrize("before", ["nothing", "a dead lease"])
def test_one_of_several_processes_wins(tmp_path: Path, before: str) -> None:
    for turn in range(3):
        storage = Storage(str(tmp_path / str(turn)))
        if before == "a dead lease":
            taken(storage, released_at=time.time())
        together = FORK.Barrier(4)
        ours, theirs = FORK.Pipe(duplex=False)
        racers = [
            FORK.Process(target=_race, args=(storage.url, together, theirs)) for _ in range(4)
        ]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        numbers = [ours.recv() for _ in racers]
        wanted = 1 if before == "nothing" else 2
        assert sorted(numbers, key=str) == [wanted, None, None, None]
