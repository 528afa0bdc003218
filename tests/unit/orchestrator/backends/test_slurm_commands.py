"""What a user's shell may and may not say to Slurm's commands, and how long they are waited for."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator.backends.base import Job
from orchestrator.backends.slurm import SlurmBackend
from orchestrator.backends.slurm_commands import ask, environment, taken_from_shell
from orchestrator.errors import BackendError
from tests.unit.orchestrator.scheduler import Answers

KEPT = {"SLURM_CONF": "/etc/slurm.conf", "SLURM_CLUSTERS": "a", "HF_TOKEN": "x", "TZ": "UTC"}
SCRIPT = """#!/bin/sh
#SBATCH --partition=gpu
#SBATCH --time=60
#SBATCH --requeue
"""


def job(tmp_path: Path) -> Job:
    return Job(name="run/corpus", argv=("true",), log=tmp_path / "jobs" / "log", tag="orc 1 corpus")


@pytest.mark.parametrize(
    "name",
    [
        "SQUEUE_STATES",
        "SQUEUE_FORMAT",
        "SQUEUE_PARTITION",
        "SACCT_FORMAT",
        "SINFO_FORMAT",
        "SCANCEL_INTERACTIVE",
        "SCONTROL_ALL",
        "SLURM_TIME_FORMAT",
        "SLURM_BITSTR_LEN",
    ],
)
def test_answers_do_not_depend_on_the_shell(name: str) -> None:
    assert environment({**KEPT, name: "x"}) == KEPT


@pytest.mark.parametrize(
    ("name", "is_kept"),
    [
        ("SBATCH_PARTITION", False),
        ("SBATCH_TIMELIMIT", False),
        ("SBATCH_ARRAY_INX", False),
        ("SBATCH_WAIT", False),
        ("SBATCH_GRES", False),
        ("SBATCH_NO_REQUEUE", False),
        ("SBATCH_ACCOUNT", True),
        ("SBATCH_QOS", True),
        ("SBATCH_CONSTRAINT", True),
        ("SBATCH_CLUSTERS", False),
    ],
)
def test_the_file_wins_and_the_shell_says_what_it_leaves_open(name: str, is_kept: bool) -> None:
    shell = {**KEPT, name: "x"}
    assert (name in environment(shell, SCRIPT)) is is_kept
    always = {"SLURM_CLUSTERS": shell["SLURM_CLUSTERS"]}
    assert taken_from_shell([SCRIPT], shell) == always | ({name: "x"} if is_kept else {})


def test_what_any_job_leaves_open_is_taken() -> None:
    shell = {"SBATCH_PARTITION": "debug"}
    assert taken_from_shell([SCRIPT, "#SBATCH --time=1"], shell) == shell


@pytest.mark.parametrize("comment", [b"caf\xe9", b"\xff\xfe", b"\x93rerun\x94"])
def test_words_of_other_jobs_may_be_in_any_encoding(answers: Answers, comment: bytes) -> None:
    answers.say("squeue", "")
    row = b"12|RUNNING|n1|None|/x/script.sh|" + comment
    (answers.folder / "squeue.txt").write_bytes(row + b"\n13|PENDING||None|/y/script.sh|ours\n")
    assert list(SlurmBackend().queue(comments=True)) == ["12", "13"]


def test_a_job_submitted_from_a_job_inherits_none_of_it(
    answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"SLURM_CONF": "/etc/slurm.conf", "HF_TOKEN": "x", "SBATCH_ACCOUNT": "speech"}
    inner = {"SLURM_CPU_BIND": "mask_cpu:0x1", "SLURM_RESTART_COUNT": "1", "SUBMITIT_EXECUTOR": "x"}
    inner |= {"SBATCH_MEM_BIND": "local"}
    for name, value in {**kept, **inner, "SLURM_JOB_ID": "5"}.items():
        monkeypatch.setenv(name, value)
    script = answers.folder / "sbatch"
    script.write_text(f"#!/bin/sh\nenv > {tmp_path}/env\necho Submitted batch job 9\n")
    script.chmod(0o755)
    SlurmBackend().submit(job(tmp_path))
    env = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert kept.items() <= env.items()
    assert not {*inner, "SLURM_JOB_ID"} & env.keys()


@pytest.mark.parametrize(
    ("ping", "code"),
    [("Slurmctld(primary) at a is DOWN", 1), ("Slurmctld(primary) at UP1 is DOWN", 0), ("", 1)],
)
def test_a_controller_that_is_gone_is_not_waited_for(
    answers: Answers, ping: str, code: int
) -> None:
    answers.say("scontrol", f"{ping}\n", code=code)
    slow(answers, "squeue")
    began = time.monotonic()
    with pytest.raises(BackendError, match="the controller does not answer squeue"):
        ask("squeue")
    with pytest.raises(BackendError, match="the controller does not answer sinfo"):
        ask("sinfo")
    assert time.monotonic() - began < 3, "it is waited for once"


def test_a_controller_that_hangs_is_not_waited_for(answers: Answers) -> None:
    slow(answers, "scontrol")
    slow(answers, "sinfo")
    began = time.monotonic()
    with pytest.raises(BackendError, match="the controller does not answer sinfo"):
        ask("sinfo")
    assert time.monotonic() - began < 3.5


@pytest.mark.parametrize("words", [("squeue",), ("scontrol", "requeue", "7"), ("scancel", "7")])
def test_a_job_and_whoever_changes_something_waits_longer(
    answers: Answers, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if words == ("squeue",):
        monkeypatch.setenv("SLURM_JOB_ID", "7")
    does = "[ $1 = ping ] && exit 1\n" if words[0] == "scontrol" else ""
    slow(answers, words[0], f"{does}sleep 2; echo late")
    assert ask(*words) == "late\n"


def test_a_busy_controller_is(answers: Answers) -> None:
    answers.say("scontrol", "Slurmctld(primary) at a is DOWN\nSlurmctld(backup) at b is UP\n")
    slow(answers, "squeue", "sleep 2; echo late")
    assert ask("squeue") == "late\n"


def slow(answers: Answers, command: str, does: str = "exec sleep 20") -> None:
    script = answers.folder / command
    script.write_text(f"#!/bin/sh\n{does}\n")
    script.chmod(0o755)
