"""What a process knows of its Slurm job, and how it asks to be run again."""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from orchestrator.backends.slurm_allocation import (
    REQUEUE_LINES,
    TERMS,
    Allocation,
    address_towards,
)
from orchestrator.errors import BackendError, ExitCode
from tests.unit.orchestrator.scheduler import Answers
from tests.unit.source import ROOT

AROUND = {
    "SUBMITIT_EXECUTOR": "slurm",
    "SLURM_JOB_ID": "12",
    "SLURM_NTASKS": "3",
    "SLURM_JOB_NUM_NODES": "3",
    "SLURM_JOB_NODELIST": "node[1-3]",
    "SLURM_NODEID": "2",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURMD_NODENAME": "node3",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}
RUNNING = "JobId=12 JobName=x JobState=RUNNING Reason=None\n"


def allocation(restarts: int = 0) -> Allocation:
    return Allocation(
        job_id="12", restarts=restarts, node_index=0, node="node1", leader_address="10.0.0.1"
    )


def test_a_process_in_no_job_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(BackendError, match="this process is in no Slurm job"):
        Allocation.current()


@pytest.mark.parametrize(
    ("more", "restart_id"),
    [
        ({}, "12-0"),
        ({"SLURM_RESTART_COUNT": "2"}, "12-2"),
        ({"SLURM_ARRAY_JOB_ID": "11", "SLURM_ARRAY_TASK_ID": "4"}, "11_4-0"),
    ],
)
def test_a_job_is_read_from_its_environment(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, str], restart_id: str
) -> None:
    for name, value in {**AROUND, **more}.items():
        monkeypatch.setenv(name, value)
    found = Allocation.current()
    assert found.restart_id == restart_id
    assert (found.node_index, found.node, found.leader_address) == (2, "node3", "10.0.0.1")
    assert found.num_nodes == 3


@pytest.mark.parametrize(
    ("state", "code", "asked"),
    [("JobState=COMPLETING", 0, 1), ("JobState=CANCELLED", 0, 1), ("slurmctld is away", 1, 1)],
)
def test_a_job_that_does_not_run_is_not_put_back(
    answers: Answers, state: str, code: int, asked: int
) -> None:
    answers.say("scontrol", f"{state}\n", code=code)
    assert allocation().requeue() == 1
    assert answers.asked == ["scontrol show job --oneliner 12"] * asked


def test_a_job_may_come_back_later(answers: Answers) -> None:
    """The scheduler takes a moment before it lets a job be changed that it ends."""
    scontrol = answers.folder / "scontrol"
    answers.say("scontrol", RUNNING)
    said = scontrol.read_text().splitlines()
    busy = f"[ $1 != update ] || [ $(grep -c update {answers.folder}/asked) -gt 2 ] || exit 1"
    scontrol.write_text("\n".join([*said[:2], busy, *said[2:], ""]))
    code = (
        "from orchestrator.backends import slurm_allocation as a;"
        f"raise SystemExit(a.{allocation()!r}.requeue('Dependency=afterany:7'))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert any("put back into the queue" in line for line in process.stderr)
    process.terminate()
    process.stderr.close()
    process.wait()
    update = "scontrol update JobId=12 Dependency=afterany:7"
    assert answers.asked[1:] == ["scontrol requeue 12", *[update] * 3]


def test_where_scontrol_is_missing_the_jobs_script_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert allocation().requeue() == ExitCode.REQUEUE
    monkeypatch.setenv(TERMS, str(tmp_path / "terms"))
    for terms in ("Dependency=afterany:7", ""):
        assert allocation().requeue(terms) == ExitCode.REQUEUE
        assert (tmp_path / "terms").read_text() == terms


def test_a_job_that_is_put_back_waits_for_its_end(answers: Answers) -> None:
    """Although its process ignored SIGTERM while it saved."""
    answers.say("scontrol", RUNNING)
    code = (
        "import signal; from orchestrator.backends.slurm_allocation import Allocation;"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"raise SystemExit({allocation()!r}.requeue())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "put back into the queue" in process.stderr.readline()
    assert answers.asked == ["scontrol show job --oneliner 12", "scontrol requeue 12"]
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    process.stderr.close()
    assert process.wait() == -signal.SIGTERM


@pytest.mark.parametrize(
    ("code", "state", "is_requeued"),
    [
        (ExitCode.REQUEUE, RUNNING, True),
        (ExitCode.REQUEUE, "JobState=CANCELLED\n", False),
        (1, RUNNING, False),
        (0, RUNNING, False),
    ],
)
def test_the_jobs_script_puts_it_back_where_its_process_cannot(
    answers: Answers, tmp_path: Path, code: int, state: str, is_requeued: bool
) -> None:
    answers.say("scontrol", state)
    sleep = answers.folder / "sleep"
    sleep.write_text("#!/bin/sh\n")
    sleep.chmod(0o755)
    script = "\n".join([f"(exit {int(code)})", *REQUEUE_LINES])
    done = subprocess.run(["bash", "-c", script], env={**os.environ, "SLURM_JOB_ID": "12"})
    assert done.returncode == code
    assert ("scontrol requeue 12" in answers.asked) is is_requeued


@pytest.mark.parametrize("terms", ["Dependency=afterany:7", "StartTime=now+5minutes", ""])
def test_the_jobs_script_passes_on_when_to_come_back(
    answers: Answers, tmp_path: Path, terms: str
) -> None:
    answers.say("scontrol", RUNNING)
    sleep = answers.folder / "sleep"
    sleep.write_text("#!/bin/sh\n")
    sleep.chmod(0o755)
    (tmp_path / "terms").write_text(terms)
    script = "\n".join([f"(exit {int(ExitCode.REQUEUE)})", *REQUEUE_LINES])
    around = {**os.environ, "SLURM_JOB_ID": "12", TERMS: str(tmp_path / "terms")}
    subprocess.run(["bash", "-c", script], env=around)
    asked = [f"scontrol update JobId=12 {terms}"] if terms else []
    assert answers.asked[1:] == ["scontrol requeue 12", *asked]


def test_how_the_start_before_this_one_ended(answers: Answers) -> None:
    answers.say(
        "sacct",
        "2024-05-01T12:00:00|RUNNING|Unknown|node1\n"
        "2024-05-01T10:00:00|PREEMPTED|2024-05-01T11:00:00|node2\n"
        "2024-05-01T11:30:00|NODE_FAIL|Unknown|node3\n",
    )
    status, ended_at = allocation(restarts=1).previous_end()
    assert (status.detail, status.cause, status.node) == ("PREEMPTED", "preempted", "node2")
    assert ended_at == time.mktime((2024, 5, 1, 11, 0, 0, 0, 0, -1))
    status, ended_at = allocation(restarts=2).previous_end()
    assert (status.detail, status.cause, ended_at) == ("NODE_FAIL", "node_lost", None)


def test_books_that_are_away_tell_nothing_of_it(answers: Answers) -> None:
    answers.say("sacct", "sacct: error: away\n", code=1)
    status, ended_at = allocation(restarts=2).previous_end()
    assert (status.detail, status.cause, ended_at) == ("", "node_lost", None)


def outer_addresses() -> list[str]:
    """This machine's addresses but for loopback ones, those of one link, and test bridges."""
    interfaces = psutil.net_if_addrs().items()
    found = (a.address for n, rows in interfaces if not n.startswith("br") for a in rows)
    return [a for a in found if is_outer(a)]


def is_outer(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:  # a hardware address, or one with its interface
        return False
    return not (address.is_loopback or address.is_link_local)


@pytest.mark.parametrize(
    "said", ["127.0.0.1", "localhost", "::1", "10.255.255.77", "no.such.host.invalid", "(null)"]
)
def test_an_address_that_others_cannot_reach_is_not_taken(answers: Answers, said: str) -> None:
    answers.say("scontrol", f"NodeName=node1 NodeAddr={said} NodeHostName=node1\n")
    assert allocation().reachable_address() == "10.0.0.1"


@pytest.mark.parametrize("address", outer_addresses())
def test_of_several_addresses_the_one_that_slurm_uses_is_taken(
    answers: Answers, address: str
) -> None:
    answers.say("scontrol", f"NodeName=node1 Arch=x86_64 NodeAddr={address} Version=22.05\n")
    assert allocation().reachable_address() == address
    assert answers.asked == ["scontrol show node --oneliner node1"]
    assert address_towards(address) == address, "a worker's own, from which it reaches the head"


def test_without_an_answer_it_is_the_address_of_the_launch(answers: Answers) -> None:
    answers.say("scontrol", "slurm_load_node error: Unable to contact slurm controller\n", code=1)
    assert allocation().reachable_address() == "10.0.0.1"
