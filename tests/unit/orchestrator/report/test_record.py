"""What the report's reader makes of a run's files, whole and broken."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from orchestrator.ledger.lease import Process
from orchestrator.ledger.status import JobState, JobStatus, Observed, run_status
from orchestrator.report.plots import mean_window, running_mean
from orchestrator.report.record import Record, read_record
from tests.unit.orchestrator.report.conftest import STEPS, Ledger

NewLedger = Callable[..., Ledger]


def record_of(ledger: Ledger, observed: Observed | None = None) -> Record:
    return read_record(ledger.run, ledger.store, observed or ledger.observed)


def test_the_report_says_what_the_status_says(finished: Ledger) -> None:
    status = run_status(finished.run, finished.store, finished.observed)
    assert record_of(finished).status.to_json() == status.to_json()
    assert record_of(finished).gaps == ()


def test_a_cancelled_scheduled_run_is_cancelled(new_ledger: NewLedger) -> None:
    ledger = new_ledger()
    corpus = ledger.of_stage("corpus")[0]
    attempt = ledger.attempt(corpus, 5.0, state="cancelled", cause="cancelled", action="stop")
    assert attempt.end
    ended = JobStatus(state=JobState.CANCELLED)
    jobs = {i.id: ended for i in ledger.plan.leaders}
    record = record_of(ledger, Observed(is_alive=False, jobs=jobs))
    assert record.status.state == "cancelled"
    assert {s.status.state for s in record.stages} == {"cancelled"}


@pytest.mark.parametrize(("ends_as", "state"), [("cancelled", "cancelled"), ("failed", "failed")])
def test_a_supervisor_writes_the_page_of_how_the_run_is_about_to_end(
    new_ledger: NewLedger, ends_as: str, state: str
) -> None:
    ledger = new_ledger()
    ledger.run.begin_supervisor(process=asdict(Process.current()))
    record = record_of(ledger, Observed(is_alive=False, ends_as=ends_as))
    assert record.status.state == state


def test_a_step_without_a_loss_is_a_gap_in_the_curve(finished: Ledger) -> None:
    train = finished.of_stage("train")[0]
    out = finished.artifact(train).storage
    lines = [json.loads(line) for line in out.read_bytes("metrics.jsonl").splitlines()]
    lines[4]["loss"] = None
    out.replace("metrics.jsonl", "\n".join(map(json.dumps, lines)).encode())
    record = record_of(finished)
    curve = record.variants[0].training
    assert [step for step, _ in curve] == list(range(1, STEPS + 1))
    assert [math.isnan(loss) for _, loss in curve].count(True) == 1
    assert math.isnan(curve[4][1])
    assert record.gaps == ()


def test_a_gap_leaves_the_mean_of_the_other_steps_alone() -> None:
    points = [(n, 2.0) for n in range(1, 61)]
    points[10] = (11, math.nan)
    assert mean_window(len(points)) == 3
    means = dict(running_mean(points))
    assert math.isnan(means.pop(11))
    assert set(means.values()) == {2.0}


def test_a_training_of_something_else_than_tokens_is_no_gap(finished: Ledger) -> None:
    (train, *_) = finished.run.plan().chosen("train")
    attempt = finished.run.attempts(train.id)[-1]
    line = {"step": 1, "frames_seen": 128, "step_s": 0.5}
    attempt.storage.replace("metrics-0001.jsonl", json.dumps(line).encode())
    record = read_record(finished.run, finished.store, finished.observed)
    assert record.gaps == ()
    assert record.of_stage("train")[0].attempts[-1].tokens_per_s is None


def test_a_broken_file_is_a_gap_of_its_own(finished: Ledger) -> None:
    train = finished.of_stage("train")[0]
    attempt = finished.run.attempts(train.id)[-1]
    attempt.storage.replace("end.json", b"{")
    record = record_of(finished, Observed(is_alive=False))
    what = f"{train.id} attempt 2: end.json cannot be read (CorruptError: "
    assert len([gap for gap in record.gaps if gap.startswith(what)]) == 1
    assert record.status.state == "succeeded"
    assert len(record.variants[0].training) == STEPS


def test_scores_of_another_form_are_a_gap(finished: Ledger) -> None:
    (perplexity, *_) = finished.of_stage("perplexity")
    broken = json.dumps({"splits": {"test": {"model": {"perplexity": math.nan}}}}).encode()
    finished.artifact(perplexity).storage.replace("scores.json", broken)
    record = record_of(finished)
    assert record.variants[0].scores.splits == {}
    assert record.gaps == (
        f"{perplexity.id}: scores.json cannot be read (ValueError: splits.test.model.perplexity: "
        "Input should be a finite number).",
    )


@pytest.mark.parametrize(
    ("figures", "nats_per_s", "interval"),
    [
        ({"nats_per_s": 0.0, "perplexity_95": [1.0, 2.0]}, 0.0, (1.0, 2.0)),
        ({"nats_per_s": math.nan, "perplexity_95": [1.0, math.nan]}, None, None),
    ],
)
def test_a_figure_that_is_no_number_hides_no_other(
    finished: Ledger, figures: Any, nats_per_s: float | None, interval: Any
) -> None:
    (perplexity, *_) = finished.of_stage("perplexity")
    scores = json.dumps({"splits": {"test": {"model": {"perplexity": 1.5, **figures}}}}).encode()
    finished.artifact(perplexity).storage.replace("scores.json", scores)
    record = record_of(finished)
    assert record.gaps == ()
    found = record.variants[0].scores.splits["test"]["model"]
    assert (found.perplexity, found.nats_per_s, found.perplexity_95) == (1.5, nats_per_s, interval)


def test_what_is_not_known_of_those_at_work_is_a_gap(finished: Ledger) -> None:
    record = record_of(finished, Observed(is_alive=False, problem="squeue: no answer"))
    assert record.gaps == ("squeue: no answer",)


def test_a_missing_run_is_no_gap(new_ledger: NewLedger) -> None:
    ledger = new_ledger()
    ledger.run.storage.delete("code.json")
    record = record_of(ledger)
    assert "code.json is missing." in record.gaps
    corpus = ledger.of_stage("corpus")[0]
    assert f"{corpus.id} (init=twist, init=cold) is not finished: pending." in record.gaps
