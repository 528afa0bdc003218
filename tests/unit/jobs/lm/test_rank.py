from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jobs.lm.rank import EXIT_ORPHANED, execution_of, free_port, last_lines
from jobs.lm.slurm_ranks import meet, step_command
from orchestrator.errors import RequestError
from orchestrator.ledger.lease import Process
from orchestrator.spec.cluster import Resources
from orchestrator.spec.recipe import Execution, Train


def train(
    sequences: int, *, context_length: int = 128, precision: str = "fp32", **execution: object
) -> Train:
    fields = {
        "context_length": context_length,
        "global_batch_tokens": sequences * context_length,
        "steps": 1,
        "precision": precision,
        "execution": Execution.model_validate(execution) if execution else None,
    }
    return Train.model_validate(fields)


@pytest.mark.parametrize(
    ("sequences", "ranks", "context_length", "micro_batch"),
    [(32, 1, 128, 32), (32, 4, 128, 8), (256, 1, 1024, 16), (24, 1, 1024, 12), (6, 2, 65_536, 1)],
)
def test_derived_micro_batch(
    sequences: int, ranks: int, context_length: int, micro_batch: int
) -> None:
    asked = train(sequences, context_length=context_length)
    assert execution_of(asked, Resources(ranks_per_node=ranks)).micro_batch == micro_batch


@pytest.mark.parametrize(
    ("ranks", "precision", "zero_stage"),
    [(1, "fp32", 0), (2, "fp32", 0), (1, "bf16", 1), (2, "bf16", 1)],
)
def test_derived_zero_stage_is_the_same_for_any_number_of_ranks(
    ranks: int, precision: str, zero_stage: int
) -> None:
    asked = train(8, precision=precision)
    assert execution_of(asked, Resources(ranks_per_node=ranks)).zero_stage == zero_stage


def test_what_the_recipe_says_is_used() -> None:
    asked = train(32, zero_stage=3, micro_batch=2)
    assert execution_of(asked, Resources(nodes=2, gpus_per_node=8)) == asked.execution


def test_a_batch_that_does_not_divide_names_sizes_that_do() -> None:
    with pytest.raises(RequestError) as raised:
        execution_of(train(32), Resources(ranks_per_node=3))
    assert str(raised.value) == (
        "train.global_batch_tokens: 4096 is 32 sequences of 128, which 3 ranks cannot "
        "share equally; use 3840 or 4224 tokens, or a number of ranks out of 1, 2, 4, 8, 16, 32"
    )


def test_more_ranks_than_sequences() -> None:
    with pytest.raises(RequestError, match=r"use 512 tokens, or a number of ranks out of 1, 2$"):
        execution_of(train(2), Resources(ranks_per_node=4))


def test_a_micro_batch_that_does_not_divide_names_those_that_do() -> None:
    with pytest.raises(
        RequestError, match=r"3 does not divide the 16 .* give one of 1, 2, 4, 8, 16$"
    ):
        execution_of(train(32, micro_batch=3), Resources(ranks_per_node=2))


def test_bf16_needs_zero() -> None:
    with pytest.raises(RequestError, match="give 1 or more, or precision fp32"):
        execution_of(train(32, precision="bf16", micro_batch=2), Resources())


def test_ranks_meet_through_a_file(tmp_path: Path) -> None:
    path, met = tmp_path / "rendezvous.json", []
    waiting = threading.Thread(target=lambda: met.append(meet(path, leads=False)))
    waiting.start()
    led = meet(path, leads=True)
    waiting.join()
    assert met == [led]


def test_ranks_do_not_wait_for_ever(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="rank 0 did not say where it listens"):
        meet(tmp_path / "rendezvous.json", leads=False, timeout_s=0.0)


def test_the_step_asks_for_one_task_per_rank() -> None:
    command = step_command(Resources(nodes=2, gpus_per_node=8, cpus_per_worker=6))
    assert command[:-3] == [
        "srun",
        "--overlap",
        "--kill-on-bad-exit=1",
        "--nodes=2",
        "--ntasks=16",
        "--ntasks-per-node=8",
        "--cpus-per-task=6",
        "--gpus-per-node=8",
    ]


def test_a_rank_ends_with_its_driver() -> None:
    driver = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process = Process.of(driver.pid)
    told = json.dumps({"host": process.host, "pid": process.pid, "started_at": process.started_at})
    code = (
        "import json, sys, time; from jobs.lm.rank import end_with;"
        "from orchestrator.ledger.lease import Process;"
        "end_with(Process(**json.loads(sys.argv[1])));"
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
    assert rank.returncode == EXIT_ORPHANED
    assert complaint == b"the driver of this training is gone; leaving\n"


def test_last_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a\nb\nc\n")
    assert last_lines(tmp_path / "log", 2) == "b\nc"
    assert last_lines(tmp_path / "none") == "(no log was written)"


def test_free_port_can_be_listened_on() -> None:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", free_port()))
