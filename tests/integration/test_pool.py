"""The pool on a real Ray session: pulling, deaths, replacement."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import OutOfMemoryError

from jobs.audio.decode import UnreadableAudioError
from jobs.awaited import Awaited
from jobs.on_node import Process, followed
from jobs.ray_session import session
from jobs.speech.pool import Pool
from orchestrator.errors import Cause, RunFailedError
from orchestrator.spec.cluster import Resources

pytestmark = pytest.mark.slow
ONE, TWO = Resources(max_workers=1), Resources(max_workers=2)


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with session("", num_cpus=4):  # of which the two actors below keep two
        yield


class Pids:
    """Answers with its process, its threads and how many items it has seen."""

    def __init__(self) -> None:
        self._seen = 0

    def __call__(self, payload: float) -> tuple[int, int, str, int]:
        import torch

        time.sleep(payload)
        self._seen += 1
        return os.getpid(), torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], self._seen


class DiesOf:
    """Kills its own process when given a number; only the first time where ``once`` is a path."""

    def __init__(self, deadly: int, once: Path | None = None) -> None:
        self._deadly, self._once = deadly, once

    def __call__(self, payload: int) -> int:
        if payload == self._deadly and not (self._once and self._once.exists()):
            if self._once:
                self._once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return payload * payload


class HasNoNumbers:
    """Is of no use for one item, the first time that it is given."""

    def __init__(self, item: int, once: Path) -> None:
        self._item, self._once = item, once

    def __call__(self, payload: int) -> int:
        if payload == self._item and not self._once.exists():
            self._once.touch()
            raise FloatingPointError("features of a wave hold NaN or infinity")
        return os.getpid()


class Raises:
    """Fails in the way that is asked for."""

    def __call__(self, payload: str) -> None:
        if payload == "ours":
            raise UnreadableAudioError(Path("a.wav"), "holds no samples")
        raise ZeroDivisionError(payload)


class RunsOutOfMemory:
    """Ends as if Ray's monitor had ended it, so often that a folder holds a file for each time."""

    def __init__(self, folder: Path, times: int) -> None:
        self._folder, self._times = folder, times

    def __call__(self, payload: int) -> int:
        count = len(list(self._folder.iterdir()))
        if count < self._times:
            (self._folder / str(count)).touch()
            node = f"Memory on the node (IP: 10.0.0.7, ID: a1) was 3.{count}GB used / 4GB limit"
            raise OutOfMemoryError(f"1 worker(s) were killed. {node}")
        return payload * payload


class CannotStart:
    """A worker that cannot be built."""

    def __init__(self) -> None:
        raise RunFailedError("encoder: no such file")


@pytest.fixture(scope="module")
def two_actors() -> Iterator[Pool]:
    with Pool(Pids, size=TWO) as pool:
        while len({r[0] for _, r in pool.run(range(2), lambda _: 0.1)}) < 2:
            pass  # until both have started, so that no test's clock counts that
        yield pool


def test_actors_pull_their_work(two_actors: Pool) -> None:
    sleeps_s = [2.0, 0.05, 0.05, 0.05, 0.05, 0.05]
    results = dict(two_actors.run(range(6), lambda item: sleeps_s[item]))
    slow_pid = results[0][0]
    assert sorted(results) == list(range(6))
    assert [r[0] == slow_pid for r in results.values()].count(True) == 1
    assert {(threads, variable) for _, threads, variable, _ in results.values()} == {(1, "1")}


def test_workers_that_are_not_needed_any_more_leave_and_come_again() -> None:
    """At the end of a run one of two does the last item; the next run has work for both."""
    with Pool(Pids, size=TWO, idle_leaves_s=1.0) as pool:
        while len({r[0] for _, r in pool.run(range(2), lambda _: 0.5)}) < 2:
            pass
        last = dict(pool.run([0, 1], lambda item: 6.0 if item == 0 else 0.05))
        assert set(pool._nodes) == set(pool._free), "nobody else is known"
        assert len(pool._free) == 1
        assert pool._starting == {}
        # Another worker takes as long to come as the machine needs, longer than one run at times.
        later = ({r[0] for _, r in pool.run(range(30), lambda _: 0.3)} for _ in range(20))
        first = next(later)
        assert last[0][0] in first
        assert len(first) > 1 or any(len(workers) > 1 for workers in later)


def test_sticky_items_return_to_the_actor_that_did_them(two_actors: Pool) -> None:
    runs = [two_actors.run(range(6), lambda _: 0.05, sticky=True) for _ in range(2)]
    first, second = ({item: result[0] for item, result in run} for run in runs)
    assert first == second
    assert len(set(first.values())) == 2


def test_items_of_another_run_go_to_whoever_is_free(two_actors: Pool) -> None:
    """One actor did both items last; now each actor gets one, as both are free."""
    (done,) = {r[0] for _, r in two_actors.run([0], lambda _: 0.0, sticky=True)}
    two_actors._actor_of[1] = two_actors._actor_of[0]
    pids = {result[0] for _, result in two_actors.run(range(2), lambda _: 1.0)}
    assert len(pids) == 2
    assert done in pids


def test_a_dead_actor_is_replaced_and_its_item_given_again(tmp_path: Path) -> None:
    with Pool(DiesOf, 3, tmp_path / "died", size=ONE) as pool:
        assert dict(pool.run(range(5), int)) == {n: n * n for n in range(5)}
    assert (tmp_path / "died").exists()


@pytest.mark.parametrize("times", [1, 2])
def test_workers_that_a_node_had_no_memory_for_are_replaced_and_then_fewer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, times: int
) -> None:
    with caplog.at_level(logging.WARNING), Pool(RunsOutOfMemory, tmp_path, times, size=TWO) as pool:
        assert dict(pool.run(range(6), int)) == {n: n * n for n in range(6)}
    assert "node 10.0.0.7 ran low on memory: 3.0GB of 4GB used" in caplog.text
    assert ("going on with 1 workers at most" in caplog.text) == (times > 1)


def test_memory_that_is_never_enough_ends_the_run_with_its_cause(tmp_path: Path) -> None:
    with (
        Pool(RunsOutOfMemory, tmp_path, 100, size=ONE) as pool,
        pytest.raises(RunFailedError, match=r"node 10\.0\.0\.7 ran low on memory") as raised,
    ):
        list(pool.run(range(20), int))
    assert raised.value.cause is Cause.HOST_OOM


def test_an_item_that_kills_twice_is_named() -> None:
    with (
        Pool(DiesOf, 7, size=ONE) as pool,
        pytest.raises(RunFailedError, match="pool: item seven killed 2 workers"),
    ):
        list(pool.run(["seven"], lambda _: 7))


def test_a_worker_that_gives_no_numbers_is_replaced(tmp_path: Path) -> None:
    with Pool(HasNoNumbers, 3, tmp_path / "once", size=ONE) as pool:
        found = dict(pool.run(range(5), int))
    assert len(found) == 5
    assert len({found[0], found[4]}) == 2


def test_a_pool_that_only_dies_gives_up() -> None:
    with Pool(DiesOf, 7, size=ONE) as pool:
        pool.deaths_in_row = 2 * ONE.max_workers + 2  # the next death is one too many
        with pytest.raises(RunFailedError, match="5 workers died in a row without finishing"):
            list(pool.run(range(20), lambda _: 7))


def test_what_the_worker_raises_reaches_the_driver() -> None:
    with Pool(Raises, size=ONE) as pool:
        with pytest.raises(RunFailedError, match=r"^a\.wav: holds no samples; repair the file or"):
            list(pool.run([1], lambda _: "ours"))
        with pytest.raises(ZeroDivisionError, match="theirs"):
            list(pool.run([1], lambda _: "theirs"))


def test_a_worker_that_cannot_start_ends_the_run_at_once() -> None:
    with (
        Pool(CannotStart, size=ONE) as pool,
        pytest.raises(RunFailedError, match=r"^encoder: no such file$"),
    ):
        list(pool.run([1], int))


def test_pending_actors_do_no_harm_and_ticks_go_on() -> None:
    ticks = []
    with Pool(Pids, size=Resources(max_workers=5)) as pool:
        results = list(pool.run(range(5), lambda _: 0.05, tick=lambda: ticks.append(1)))
    assert len(results) == 5
    assert ticks


def test_the_session_leaves_signal_handlers_alone() -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_process_that_is_lost_before_it_answers_is_begun_anew() -> None:
    """As of a node that has gone, to which Ray goes on to send actors for some seconds."""
    begun: list[Any] = []

    def begin(num_lost: int) -> Any:
        process = ray.remote(Process).remote("timeit", ["-n", "1", "-r", "1", "pass"])
        begun.append(process)
        if len(begun) <= num_lost:
            ray.kill(process)
        return process

    assert followed(lambda: begin(num_lost=2), Awaited("stage")) == 0
    assert len(begun) == 3
    begun.clear()
    with pytest.raises(RunFailedError, match="the process on its node was lost") as lost:
        followed(lambda: begin(num_lost=9), Awaited("stage"))
    assert lost.value.cause == Cause.WORKER_LOST
    assert len(begun) == 4
