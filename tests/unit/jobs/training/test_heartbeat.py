"""What a rank writes into its attempt's folder, and which orders it obeys."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from jobs.training.heartbeat import DUMP, SEGMENT_LINES, STOP, WARNINGS, Heartbeat
from jobs.training.rank import RankInfo
from orchestrator.ledger.storage import Storage
from tests.unit.jobs.training.countdown import rank_config

EVERY_S = 0.01


def heartbeat(tmp_path: Path, rank: int = 0) -> Heartbeat:
    info = RankInfo(rank=rank, world_size=2, local_rank=rank, local_world_size=2)
    return Heartbeat(rank_config(tmp_path), info, every_s=EVERY_S)


def record(tmp_path: Path) -> Storage:
    return Storage(rank_config(tmp_path).record_url)


def wait_for(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(EVERY_S)


def test_a_beat_tells_how_far_the_rank_is(tmp_path: Path) -> None:
    with heartbeat(tmp_path, rank=1) as own:
        own.step = 7
        own.tick("training")
        own.tick("training")
        own.published()
    beat = record(tmp_path).read_json("beats/rank-00001.json")
    told = {name: beat[name] for name in ("rank", "step", "phase", "ticks", "files")}
    assert told == {"rank": 1, "step": 7, "phase": "training", "ticks": 2, "files": 1}
    assert beat["process"]["pid"] == os.getpid()


def test_only_rank_0_tells_of_rates_and_lines(tmp_path: Path) -> None:
    with heartbeat(tmp_path, rank=1) as other:
        other.record({"step": 1})
    assert not record(tmp_path).exists("live.json")
    assert not record(tmp_path).exists("metrics-0001.jsonl")
    with heartbeat(tmp_path) as own:
        own.live["rates"] = {"loss": 1.5}
        own.step = 3
    live = record(tmp_path).read_json("live.json")
    assert (live["step"], live["rates"]) == (3, {"loss": 1.5})


def test_lines_come_in_whole_numbered_segments(tmp_path: Path) -> None:
    num_lines = SEGMENT_LINES + 3
    with heartbeat(tmp_path) as own:
        for step in range(num_lines):
            own.record({"step": step})
    segments = sorted((tmp_path / "attempt").glob("metrics-*.jsonl"))
    lines = [path.read_text().splitlines() for path in segments]
    assert [len(part) for part in lines] == [SEGMENT_LINES, 3]
    steps = [json.loads(line)["step"] for part in lines for line in part]
    assert steps == list(range(num_lines))


def test_an_order_to_stop_is_seen(tmp_path: Path) -> None:
    with heartbeat(tmp_path) as own:
        assert not own.stop_seen
        record(tmp_path).replace(STOP, b"{}")
        wait_for(lambda: own.stop_seen)


def test_an_order_for_stacks_is_obeyed_once(tmp_path: Path) -> None:
    with heartbeat(tmp_path) as own:
        record(tmp_path).replace(DUMP, b"{}")
        wait_for(lambda: record(tmp_path).exists("rank-00000.stacks.txt"))
        assert not own.stop_seen
        assert b"test_heartbeat.py" in record(tmp_path).read_bytes("rank-00000.stacks.txt")
        record(tmp_path).replace("rank-00000.stacks.txt", b"kept")
        time.sleep(5 * EVERY_S)
        assert record(tmp_path).read_bytes("rank-00000.stacks.txt") == b"kept"


@pytest.mark.parametrize("number", WARNINGS)
def test_a_schedulers_signal_asks_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    before = {n: signal.getsignal(n) for n in WARNINGS}
    try:
        with heartbeat(tmp_path) as own:
            os.kill(os.getpid(), number)
            wait_for(lambda: own.stop_seen)
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def test_a_store_out_of_reach_ends_no_heartbeat(tmp_path: Path) -> None:
    own = heartbeat(tmp_path)
    beats = tmp_path / "attempt" / "beats"
    with own:
        wait_for(beats.is_dir)
        while beats.is_dir():  # a beat may come meanwhile
            shutil.rmtree(beats, ignore_errors=True)
            with suppress(IsADirectoryError):
                beats.write_text("in the way")
        time.sleep(5 * EVERY_S)
        beats.unlink()
        wait_for(lambda: record(tmp_path).exists("beats/rank-00000.json"))


VICTIM = """
import sys, time
from pathlib import Path
from jobs.training.heartbeat import Heartbeat
from jobs.training.rank import RankInfo
from tests.unit.jobs.training.countdown import rank_config
info = RankInfo(rank=1, world_size=2, local_rank=1, local_world_size=2)
with Heartbeat(rank_config(Path(sys.argv[1])), info, every_s=0.01):
    time.sleep(float(sys.argv[2]))
"""


def victim(tmp_path: Path, order: dict[str, object], sleep_s: float) -> int:
    """The exit code of a rank 1 that finds a drill's order."""
    record(tmp_path).create_json("orders/fault.json", order)
    argv = [sys.executable, "-c", VICTIM, str(tmp_path), str(sleep_s)]
    return subprocess.run(argv, timeout=60, check=False).returncode


def test_a_drill_kills_the_rank_it_names(tmp_path: Path) -> None:
    assert victim(tmp_path, {"kind": "rank", "rank": 1}, 60) == -signal.SIGKILL


def test_a_drill_leaves_other_ranks_alone(tmp_path: Path) -> None:
    assert victim(tmp_path, {"kind": "rank", "rank": 0}, 0.3) == 0
