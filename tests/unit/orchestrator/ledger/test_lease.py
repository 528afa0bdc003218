"""One attempt at a time has the right to a key, and a later one fences off the earlier."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from orchestrator.errors import LeaseHeldError
from orchestrator.ledger import lease as leases
from orchestrator.ledger.lease import Lease, Process, acquire, current
from orchestrator.ledger.storage import Storage

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
    assert not lease.is_live(TIMEOUT_S)
    assert acquire(storage, holder="b", timeout_s=TIMEOUT_S).number == 2


def test_beating_moves_the_heartbeat(storage: Storage) -> None:
    held = acquire(storage, holder="a", timeout_s=TIMEOUT_S)
    before = held.lease.heartbeat_at
    time.sleep(0.01)
    held.beat()
    lease = current(storage)
    assert lease is not None
    assert lease.heartbeat_at > before


def test_a_lost_lease_is_noticed_by_the_next_beat(storage: Storage) -> None:
    held = acquire(storage, holder="a", timeout_s=TIMEOUT_S)
    held.release()
    acquire(storage, holder="b", timeout_s=TIMEOUT_S)
    with pytest.raises(LeaseHeldError) as raised:
        held.beat()
    assert str(raised.value) == (f"{storage.url}: lease 1 was lost to 2; this attempt must end")


def test_on_another_machine_the_heartbeat_decides(storage: Storage) -> None:
    taken(storage, heartbeat_at=time.time() - TIMEOUT_S / 2)
    with pytest.raises(LeaseHeldError):
        acquire(storage, holder="b", timeout_s=TIMEOUT_S)
    assert acquire(storage, holder="b", timeout_s=TIMEOUT_S / 3).number == 2


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
    reused = replace(Process.current(), started_at=Process.current().started_at - 100)
    assert reused.is_alive() is False
    taken(storage, process=reused)
    assert acquire(storage, holder="b", timeout_s=TIMEOUT_S).number == 2


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
