"""Which curves a run's page has."""

from __future__ import annotations

import json
from collections.abc import Callable

from orchestrator.report.curves import drawn, figures, window
from orchestrator.report.record import Record, read_record
from tests.unit.orchestrator.report.conftest import STEPS, Ledger, scores_of

NewLedger = Callable[..., Ledger]


def record_of(ledger: Ledger) -> Record:
    return read_record(ledger.run, ledger.store, ledger.observed)


def test_a_trained_run_shows_losses_optimizer_and_speed(untouched: tuple[Ledger, str]) -> None:
    record = record_of(untouched[0])
    found = {figure.name: figure for figure in figures(record, set())}
    assert list(found) == ["losses", "optimizer", "speeds"]
    training, validation = found["losses"].panels
    assert training.lines[0].raw == record.variants[0].training
    assert [step for step, _ in validation.lines[0].points] == [10, 20, 30, 40]
    rate, norm = found["optimizer"].panels
    assert {value for _, value in rate.lines[0].points} == {3e-3}
    assert len(norm.lines[1].points) == STEPS
    assert window(record) == STEPS // 20


def test_an_arm_has_a_colour_and_what_is_not_best_stands_back(new_ledger: NewLedger) -> None:
    ledger = new_ledger({"model.init": ["twist", "cold"], "train.optimizer.lr": [0.001, 0.003]})
    for train in ledger.of_stage("train"):
        ledger.write_training(train, drop=1.0)
        ledger.publish(train)
    styles = [style for _, style in drawn(record_of(ledger), {"init=twist,lr=0.003"})]
    assert [(s.colour, s.dash) for s in styles] == [
        ("warm", "none"),
        ("warm", "7 3"),
        ("cold", "none"),
        ("cold", "7 3"),
    ]
    assert [s.is_best for s in styles] == [False, True, False, False]


def test_a_step_that_was_taken_again_has_its_last_speed(finished: Ledger) -> None:
    train = finished.of_stage("train")[0]
    for n, attempt in enumerate(finished.run.attempts(train.id), start=1):
        line = {"step": 1, "tokens_seen": 128, "step_s": float(n)}
        attempt.storage.replace("metrics-0001.jsonl", json.dumps(line).encode())
    (speeds,) = [f for f in figures(record_of(finished), set()) if f.name == "speeds"]
    assert list(speeds.panels[0].lines[0].points) == [(1, 64.0)]


def test_a_run_without_a_training_has_no_figure(new_ledger: NewLedger) -> None:
    assert figures(record_of(new_ledger()), set()) == []


def test_a_variant_that_is_called_as_its_arm_is_called_so_once(new_ledger: NewLedger) -> None:
    points = {"warm": {"model.init": "twist"}, "other": {"model.init": "cold"}}
    ledger = new_ledger({"start": points})
    for variant in ledger.plan.variants:
        ledger.finish_variant(variant["name"], scores_of(14.0, 14.0))
    labels = [style.label for _, style in drawn(record_of(ledger), ())]
    assert labels == ["warm", "cold other"]
