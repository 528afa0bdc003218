"""What is made of Slurm's answers: real processes that print what a real Slurm printed."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path

import pytest

from orchestrator.backends.base import Job, JobRef
from orchestrator.backends.slurm import STATES, SlurmBackend
from orchestrator.backends.slurm_reasons import LAUNCH_FAILED
from orchestrator.errors import BackendError, RequestError
from orchestrator.ledger.status import JobState, JobStatus
from tests.unit.orchestrator.scheduler import Answers

AT = 1_700_000_000.0


def ask(job_id: str = "7") -> JobStatus:
    ref = JobRef(backend="slurm", id=job_id, submitted_at=AT)
    return SlurmBackend().poll([ref])[ref]


def test_an_end_in_the_books_is_an_end(answers: Answers) -> None:
    answers.say("sacct", "7|COMPLETED|0:0|node[1-2]\n")
    assert ask() == JobStatus(
        state=JobState.SUCCEEDED, exit_code=0, node="node[1-2]", detail="COMPLETED"
    )
    assert len(answers.asked) == 1


@pytest.mark.parametrize(
    ("row", "state", "code", "cause"),
    [
        ("FAILED|2:0", JobState.FAILED, 2, None),
        ("FAILED|3:0", JobState.FAILED, 3, "storage"),
        ("FAILED|0:9", JobState.FAILED, -9, None),
        ("TIMEOUT|0:0", JobState.FAILED, 0, "walltime"),
        ("OUT_OF_MEMORY|0:125", JobState.FAILED, -125, "host_oom"),
        ("CANCELLED by 1000|0:15", JobState.CANCELLED, -15, "cancelled"),
    ],
)
def test_how_jobs_end(
    answers: Answers, row: str, state: JobState, code: int, cause: str | None
) -> None:
    answers.say("sacct", f"7|{row}|node1\n")
    status = ask()
    assert (status.state, status.exit_code, status.cause) == (state, code, cause)


@pytest.mark.parametrize("word", ["PREEMPTED", "NODE_FAIL", "REQUEUED", "BOOT_FAIL"])
def test_the_end_of_one_life_is_not_the_jobs(answers: Answers, word: str) -> None:
    answers.say("sacct", f"7|{word}|0:0|node1\n")
    answers.say("squeue", "7|PENDING||BeginTime|x\n")
    assert ask() == JobStatus(state=JobState.QUEUED, detail="PENDING (BeginTime)")


@pytest.mark.parametrize(
    ("word", "state", "cause"),
    [
        ("PREEMPTED", JobState.PREEMPTED, "preempted"),
        ("NODE_FAIL", JobState.FAILED, "node_lost"),
    ],
)
def test_it_is_where_the_queue_knows_it_no_more(
    answers: Answers, word: str, state: JobState, cause: str
) -> None:
    answers.say("sacct", f"7|{word}|0:0|node1\n")
    answers.say("squeue", "8|RUNNING|node1|None|x\n")
    assert (ask().state, ask().cause) == (state, cause)


def test_books_that_lag_are_no_truth(answers: Answers) -> None:
    answers.say("sacct", "7|RUNNING|0:0|node1\n")
    answers.say("squeue", "")
    assert ask().state is JobState.UNKNOWN


def test_a_job_that_nobody_knows_is_not_finished(answers: Answers) -> None:
    answers.say("sacct", "")
    answers.say("squeue", "")
    assert ask() == JobStatus(state=JobState.UNKNOWN)


def test_without_books_the_queue_is_asked_for_ended_jobs_too(answers: Answers) -> None:
    answers.say("sacct", "Slurm accounting storage is disabled\n", code=1)
    answers.say("squeue", "7|FAILED|node1|NonZeroExitCode|x\n")
    assert ask().state is JobState.FAILED
    assert "--states=all" in answers.asked[-1]


def test_the_books_are_asked_from_before_the_submission_on(answers: Answers) -> None:
    """By itself sacct looks no further back than midnight, and ids are used again."""
    answers.say("sacct", "7|COMPLETED|0:0|node1\n")
    ask()
    (asked,) = answers.asked
    assert "--starttime=2023-11-1" in asked


@pytest.mark.parametrize(
    ("rows", "state", "detail"),
    [
        (
            ["RUNNING", "PENDING", "COMPLETED"],
            JobState.RUNNING,
            "1 completed, 1 pending, 1 running",
        ),
        (["COMPLETED", "COMPLETED"], JobState.SUCCEEDED, "2 completed"),
        (["COMPLETED", "FAILED"], JobState.FAILED, "1 completed, 1 failed"),
    ],
)
def test_an_array_is_one_job(
    answers: Answers, rows: list[str], state: JobState, detail: str
) -> None:
    lines = [f"7_{n}|{word}|0:0|node{n}" for n, word in enumerate(rows)]
    answers.say("sacct", "\n".join([*lines, ""]))
    answers.say("squeue", "".join(f"7|{w}|node1|None|x\n" for w in rows if w != "COMPLETED"))
    status = ask()
    assert status.state is state
    if state is not JobState.RUNNING:
        assert status.detail == detail


@pytest.mark.parametrize(("others", "is_held"), [("None", False), (LAUNCH_FAILED, True)])
def test_an_array_is_held_when_all_of_its_tasks_are(
    answers: Answers, others: str, is_held: bool
) -> None:
    answers.say("sacct", "7_0|PENDING|0:0|\n7_1|PENDING|0:0|\n")
    answers.say("squeue", f"7|PENDING||{LAUNCH_FAILED}|x\n7|PENDING||{others}|x\n")
    assert ask().is_held is is_held


def test_a_scheduler_out_of_reach_is_said_so(answers: Answers) -> None:
    answers.say("sacct", "sacct: error: Connection refused\n", code=1)
    answers.say("squeue", "squeue: error: Unable to contact slurm controller\n", code=1)
    with pytest.raises(BackendError, match="slurm: squeue: Unable to contact slurm controller"):
        ask()


@pytest.mark.parametrize("word", ["POWER_UP_NODE", "EXPEDITING", "A_WORD_TO_COME"])
def test_a_job_in_the_queue_is_there_whatever_it_is_called(answers: Answers, word: str) -> None:
    answers.say("sacct", "")
    answers.say("squeue", f"7|{word}||None|x\n")
    assert ask() == JobStatus(state=JobState.QUEUED, detail=word)


@pytest.mark.parametrize(
    "around",
    ["Welcome to the site\n{}", "{}sacct: note: archive|is|read|only\n", "\n{}\n|||\n7||0:0|n\n"],
)
def test_what_a_wrapper_says_beside_the_books_is_no_job(answers: Answers, around: str) -> None:
    answers.say("sacct", around.format("7|FAILED|2:0|node1\n"))
    status = ask()
    assert (status.state, status.exit_code, status.node) == (JobState.FAILED, 2, "node1")


def test_every_word_of_slurms_has_a_meaning() -> None:
    assert set(STATES.values()) == set(JobState) - {JobState.UNKNOWN}


def job(tmp_path: Path) -> Job:
    return Job(name="run/corpus", argv=("true",), log=tmp_path / "jobs" / "log", tag="orc 1 corpus")


def test_what_slurm_refuses_is_a_wrong_request(answers: Answers, tmp_path: Path) -> None:
    answers.say("sbatch", "sbatch: error: Invalid account specified\n", code=1)
    answers.say("squeue", "")
    with pytest.raises(RequestError, match="run/corpus: slurm: sbatch: Invalid account specified"):
        SlurmBackend().submit(job(tmp_path))


@pytest.mark.parametrize(
    "said",
    [
        "Socket timed out on send/recv operation",
        "Batch job submission failed: Connection reset by peer",
        "Batch job submission failed: Insane message length",
        "Batch job submission failed: Broken pipe",
    ],
)
def test_what_was_accepted_is_found_by_its_tag(answers: Answers, tmp_path: Path, said: str) -> None:
    answers.say("sbatch", f"sbatch: error: {said}\n", code=1)
    rows = "41|PENDING||None|(null)|orc 1 encoder\n42|PENDING||None|(null)|orc 1 corpus\n"
    answers.say("squeue", rows)
    assert SlurmBackend(adopt_every_s=0.01).submit(job(tmp_path)).id == "42"


def test_what_is_accepted_late_is_found_too(answers: Answers, tmp_path: Path) -> None:
    answers.say("sbatch", "sbatch: error: Socket timed out on send/recv operation\n", code=1)
    late = answers.folder / "squeue"
    late.write_text(
        f"#!/bin/sh\n[ -e {tmp_path}/asked ] && echo '42|PENDING||None||orc 1 corpus'\n"
    )
    late.write_text(f"{late.read_text()}touch {tmp_path}/asked\n")
    late.chmod(0o755)
    assert SlurmBackend(adopt_every_s=0.01).submit(job(tmp_path)).id == "42"


@pytest.mark.parametrize(
    "said",
    [
        "Submitted batch job 42\n",
        "site: your job 2 GPUs will cost 3\nSubmitted batch job 42\n",
        "Submitted batch job 42 on cluster alpha\nsee job 7 for hints\n",
    ],
)
def test_the_id_is_where_slurm_says_it(answers: Answers, tmp_path: Path, said: str) -> None:
    answers.say("sbatch", said)
    assert SlurmBackend().submit(job(tmp_path)).id == "42"


def test_hints_of_how_to_ask_are_not_the_answer(answers: Answers, tmp_path: Path) -> None:
    said = "sbatch: unrecognized option '--x'\nTry \"sbatch --help\" for more information\n"
    answers.say("sbatch", said, code=1)
    answers.say("squeue", "")
    with pytest.raises(RequestError, match="unrecognized option '--x'"):
        SlurmBackend().submit(job(tmp_path))


@pytest.mark.parametrize(
    "said",
    [
        "error: Unable to contact slurm controller",
        "fatal: Could not establish a configuration source",
        "error: Batch job submission failed: Protocol authentication error",
        "error: Batch job submission failed: Communication connection failure",
        "error: Batch job submission failed: Slurm backup controller in standby mode",
        "error: If munged is up, restart with --num-threads=10",
        "error: Batch job submission failed: Unable to establish controller machine",
        "error: Batch job submission failed: I/O error writing script/environment to file",
    ],
)
def test_what_was_not_accepted_may_be_submitted_again(
    answers: Answers, tmp_path: Path, said: str
) -> None:
    answers.say("sbatch", f"sbatch: {said}\n", code=1)
    with pytest.raises(BackendError, match="submit again"):
        SlurmBackend().submit(job(tmp_path))
    assert [asked.split()[0] for asked in answers.asked] == ["sbatch"]


@pytest.mark.parametrize("said", ["Connection reset by peer", "Insane message length"])
def test_an_answer_that_was_lost_is_no_wrong_request(
    answers: Answers, tmp_path: Path, said: str
) -> None:
    answers.say("sbatch", f"sbatch: error: Batch job submission failed: {said}\n", code=1)
    answers.say("squeue", "")
    with pytest.raises(BackendError, match="submit again"):
        SlurmBackend(adopt_every_s=0.01).submit(job(tmp_path))


def test_a_single_job_that_the_queue_never_heard_of_is_no_error(answers: Answers) -> None:
    answers.say("sacct", "")
    answers.say("squeue", "slurm_load_jobs error: Invalid job id specified\n", code=1)
    assert ask().state is JobState.UNKNOWN


@pytest.mark.parametrize(
    "comment",
    ["", "site", "first line\n41|second|line", "billed: x|y\n\nby: cli_filter\n", "(null)"],
)
def test_what_was_accepted_is_found_whatever_a_plugin_made_of_its_comment(
    answers: Answers, tmp_path: Path, comment: str
) -> None:
    answers.say("sbatch", "sbatch: error: Socket timed out on send/recv operation\n", code=1)
    script = job(tmp_path).log.parent / "script.sh"
    rows = f"41|PENDING||None|/x/script.sh|{comment}\n42|COMPLETED|n1|None|{script}|{comment}\n"
    answers.say("squeue", rows)
    assert SlurmBackend(adopt_every_s=0.01).submit(job(tmp_path)).id == "42"


def test_comments_of_several_lines_are_no_jobs(answers: Answers) -> None:
    answers.say("sacct", "")
    lines = "billed to speech | 7\nsecond line\n\n"
    answers.say("squeue", f"7|RUNNING|n1|None|/s/a b.sh|{lines}8|PENDING||Priority|(null)|{lines}")
    assert ask("7") == JobStatus(state=JobState.RUNNING, node="n1", detail="RUNNING")
    assert ask("8").state is JobState.QUEUED


@pytest.mark.parametrize(
    ("said", "is_fine"),
    [
        ("Kill job error on job id 7: Invalid job id specified", True),
        ("Kill job error on job id 7: Job/step already completing or completed", True),
        ("Kill job error on job id 7: Access/permission denied", False),
        ("Unable to contact slurm controller (connect failure)", False),
    ],
)
def test_a_job_that_has_ended_may_be_cancelled(answers: Answers, said: str, is_fine: bool) -> None:
    answers.say("scancel", f"scancel: error: {said}\n", code=1)
    refs = [JobRef(backend="slurm", id="7", submitted_at=AT)]
    with nullcontext() if is_fine else pytest.raises(BackendError, match=re.escape(said)):
        SlurmBackend().cancel(refs)


def test_ends_of_a_moment_ago_are_read_where_the_books_are_late(answers: Answers) -> None:
    answers.say("sacct", "")
    answers.say("squeue", "7|CANCELLED|n1|None|/s.sh|x\n")
    assert (ask().state, ask().cause) == (JobState.CANCELLED, "cancelled")
