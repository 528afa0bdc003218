"""What was handed over is remembered, whoever dies on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.ledger.storage import Storage
from orchestrator.ledger.submission import Submissions, SubmittedJob


def job(name: str, number: int, kind: str = "stage") -> SubmittedJob:
    instance = "" if kind == "sentinel" else name.removesuffix("-workers")
    return SubmittedJob(
        name=name, kind=kind, instance=instance, id=str(number), submitted_at=float(number)
    )


@pytest.fixture
def submissions(tmp_path: Path) -> Submissions:
    return Submissions(Storage(str(tmp_path / "run")))


def test_a_submission_without_its_end_is_not_whole(submissions: Submissions) -> None:
    number = submissions.begin("user", {})
    submissions.record(number, job("corpus-1", 11))
    (found,) = submissions.all()
    assert (found.number, found.by, found.is_whole) == (1, "user", False)
    assert [j.id for j in found.jobs] == ["11"]
    submissions.close(number)
    assert submissions.all()[0].is_whole


def test_the_newest_job_of_a_stage_counts(submissions: Submissions) -> None:
    first = submissions.begin("user", {})
    for number, name in enumerate(("corpus-1", "train-1"), 11):
        submissions.record(first, job(name, number))
    submissions.record(first, job("train-1-workers", 13, "workers"))
    second = submissions.begin("sentinel", {})
    submissions.record(second, job("train-1", 21))
    newest = [(j.kind, j.instance, j.id) for j in submissions.newest_jobs()]
    assert newest == [
        ("stage", "corpus-1", "11"),
        ("stage", "train-1", "21"),
        ("workers", "train-1", "13"),
    ]


def test_sentinels_that_got_no_further_are_counted(submissions: Submissions) -> None:
    assert submissions.in_vain({"train-1": 40.0}) == 0
    for by, left in (("user", 40.0), ("sentinel", 40.0), ("sentinel", 80.0), ("sentinel", 80.0)):
        submissions.close(submissions.begin(by, {"train-1": left}))
    submissions.begin("sentinel", {"train-1": 80.0})  # of which nothing came
    assert submissions.in_vain({"train-1": 80.0}) == 2
    assert submissions.in_vain({"train-1": 120.0}) == 0, "the last one got something done"
    assert submissions.in_vain({}) == 0, "and so it did when the stage is complete"


def test_a_user_gives_sentinels_a_new_start(submissions: Submissions) -> None:
    assert submissions.users_last() == 0.0
    for by in ("sentinel", "sentinel", "user"):
        submissions.begin(by, {"train-1": 0.0})
    assert submissions.in_vain({"train-1": 0.0}) == 0
    assert submissions.users_last() == submissions.all()[-1].at


def test_the_first_word_about_an_end_stands_until_the_job_runs_again(
    submissions: Submissions,
) -> None:
    number = submissions.begin("user", {})
    for n, name in enumerate(("corpus-1", "train-1", "pack-1"), 11):
        submissions.record(number, job(name, n))
    submissions.end({job_id: {"state": "cancelled"} for job_id in ("11", "12", "99")})
    submissions.end({"12": {"state": "failed"}})
    assert {i: row["state"] for i, row in submissions.ended().items()} == {
        "11": "cancelled",
        "12": "cancelled",
    }
    submissions.remember({"12": {"state": "failed"}, "13": {"state": "queued"}})
    submissions.reopen("12")
    assert (list(submissions.ended()), list(submissions.seen())) == (["11"], ["13"])
