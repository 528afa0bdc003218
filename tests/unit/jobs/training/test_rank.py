from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jobs.training.rank import (
    RankConfig,
    RankInfo,
    failure,
    failure_recorded,
    free_port,
    last_lines,
    log_path,
)
from orchestrator.errors import Cause, ExitCode, RunFailedError
from orchestrator.ledger.lease import Process


def test_a_rank_ends_with_its_driver() -> None:
    driver = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process = Process.of(driver.pid)
    told = json.dumps({"host": process.host, "pid": process.pid, "started_at": process.started_at})
    code = (
        "import json, sys, time; from jobs.training.rank import end_with;"
        "from orchestrator.ledger.lease import Process;"
        "end_with(Process.from_json(json.loads(sys.argv[1])));"
        "print('watching', flush=True); time.sleep(60)"
    )
    rank = subprocess.Popen(
        [sys.executable, "-c", code, told], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert rank.stdout
    assert rank.stdout.readline() == b"watching\n"
    driver.kill()
    driver.wait()
    _, complaint = rank.communicate(timeout=10)
    assert rank.returncode == ExitCode.ORPHANED
    assert complaint == b"the driver of this training is gone; leaving\n"


def test_last_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a\nb\nc\n")
    assert last_lines(tmp_path / "log", 2) == "b\nc"
    assert last_lines(tmp_path / "none") == "(no log was written)"


def rank_config(folder: Path) -> RankConfig:
    return RankConfig.model_construct(folder=str(folder), record_url=str(folder))


def fail(folder: Path, rank: int, error: Exception) -> None:
    info = RankInfo(rank=rank, world_size=3, local_rank=rank, local_world_size=3)
    log_path(folder, rank).write_text(f"log of rank {rank}\n")
    with pytest.raises(type(error)), failure_recorded(rank_config(folder), info):
        raise error


def test_a_rank_that_knows_its_cause_is_heard_before_those_that_lost_it(tmp_path: Path) -> None:
    fail(tmp_path, 0, RuntimeError("Connection closed by peer"))
    fail(tmp_path, 2, RunFailedError("no finite loss", cause=Cause.NONFINITE))
    error = failure(rank_config(tmp_path), 3, "exit code 1")
    assert error.cause is Cause.NONFINITE
    assert str(error).splitlines() == [
        f"the last lines of {log_path(tmp_path, 2)}:",
        "log of rank 2",
        "train: a rank failed (exit code 1): no finite loss",
    ]


@pytest.mark.parametrize("message", ["no finite loss", "cluster: scratch: full (no room)", "a: b"])
def test_what_ray_says_in_a_ranks_words_is_said_once(tmp_path: Path, message: str) -> None:
    fail(tmp_path, 1, RunFailedError(message, cause=Cause.STORAGE))
    error = failure(rank_config(tmp_path), 3, f"rank 1: {message}")
    assert str(error).endswith(f"\ntrain: a rank failed (rank 1: {message})")


def test_a_rank_out_of_device_memory_is_heard_before_those_that_lost_it(tmp_path: Path) -> None:
    fail(tmp_path, 0, RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"))
    fail(tmp_path, 3, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    for suspect in (None, 0):
        error = failure(rank_config(tmp_path), 4, "exit code 1", suspect, is_lost=False)
        assert error.cause is Cause.DEVICE_OOM
        assert str(error).splitlines()[1] == "log of rank 3"
    assert failure(rank_config(tmp_path), 4, "ended by signal 6", 0).cause is Cause.DEVICE_OOM


def test_an_error_is_heard_before_a_lost_connection_that_was_noticed_first(tmp_path: Path) -> None:
    fail(tmp_path, 0, RuntimeError("NCCL error: remote process exited"))
    fail(tmp_path, 2, KeyError("layer"))
    error = failure(rank_config(tmp_path), 3, "exit code 1", 0, is_lost=False)
    assert error.cause is Cause.ERROR
    assert str(error).endswith("KeyError: 'layer'")


def test_a_rank_that_was_killed_is_blamed_before_an_error(tmp_path: Path) -> None:
    fail(tmp_path, 0, KeyError("layer"))
    error = failure(rank_config(tmp_path), 3, "ended by signal 9", 1)
    assert error.cause is Cause.WORKER_LOST


def test_the_rank_to_blame_speaks_for_itself(tmp_path: Path) -> None:
    fail(tmp_path, 0, RunFailedError("no finite loss", cause=Cause.NONFINITE))
    fail(tmp_path, 1, OSError(28, "full"))
    assert failure(rank_config(tmp_path), 3, "x", 1).cause is Cause.STORAGE


def test_a_report_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    fail(tmp_path, 0, RunFailedError("no finite loss", cause=Cause.NONFINITE))
    fail(tmp_path, 1, OSError(28, "full"))
    first, *_ = sorted(p for p in tmp_path.rglob("*") if p.is_file() and "00000" in p.name)
    first.write_bytes(b"{")
    assert failure(rank_config(tmp_path), 3, "x").cause is Cause.STORAGE


@pytest.mark.parametrize(("is_lost", "cause"), [(True, Cause.WORKER_LOST), (False, Cause.ERROR)])
def test_a_rank_that_left_no_report(tmp_path: Path, is_lost: bool, cause: Cause) -> None:
    error = failure(rank_config(tmp_path), 3, "ended by signal 9", 1, is_lost=is_lost)
    assert error.cause is cause
    assert str(error).endswith("(no log was written)\ntrain: a rank failed (ended by signal 9)")


def test_ranks_that_fail_alike_count_as_an_error(tmp_path: Path) -> None:
    fail(tmp_path, 1, RuntimeError("Connection closed by peer"))
    assert failure(rank_config(tmp_path), 3, "x").cause is Cause.ERROR


def test_free_port_can_be_listened_on() -> None:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", free_port()))
