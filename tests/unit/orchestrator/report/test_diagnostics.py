"""Each sign is seen where it is, and nowhere else."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.report.arms import Comparison, comparisons
from orchestrator.report.curves import figures
from orchestrator.report.diagnostics import findings
from orchestrator.report.paired import Difference
from orchestrator.report.record import Point, Record, read_record
from tests.unit.orchestrator.report.conftest import STEPS, Ledger, scores_of

NewLedger = Callable[..., Ledger]
FLAT: tuple[Point, ...] = tuple((n, 2.0) for n in range(1, 101))


def signs(record: Record, matches: tuple[Comparison, ...] = ()) -> list[str]:
    found = findings(record, matches)
    assert all(finding.tries for finding in found)
    return [finding.sign for finding in found]


@pytest.fixture
def healthy(new_ledger: NewLedger) -> Record:
    """One variant of which nothing is to be said."""
    ledger = new_ledger({})
    ledger.finish_data()
    ledger.finish_variant("base", scores_of(14.0, 14.1))
    record = read_record(ledger.run, ledger.store, ledger.observed)
    return changed(record, training=FLAT, validation=FLAT[9::10], grad_norm=FLAT)


def changed(record: Record, **fields: Any) -> Record:
    (variant,) = record.variants
    return dataclasses.replace(record, variants=(dataclasses.replace(variant, **fields),))


def test_of_a_healthy_run_nothing_is_said(healthy: Record) -> None:
    assert signs(healthy, comparisons(healthy)) == []


def test_steps_without_a_loss_are_counted(healthy: Record) -> None:
    training = ((1, math.nan), (2, math.inf), *FLAT[2:])
    assert signs(changed(healthy, training=training)) == [
        "base: 2 of 100 steps have no finite loss or gradient, the first of them step 1."
    ]


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_is_pointed_at(healthy: Record, norm: float) -> None:
    norms = (*FLAT[:50], (51, norm), *FLAT[51:])
    assert signs(changed(healthy, grad_norm=norms)) == [
        "base: 1 of 100 steps have no finite loss or gradient, the first of them step 51."
    ]


def test_a_gradient_that_explodes(healthy: Record) -> None:
    norms = (*FLAT[:50], (51, 19.0), (52, 35.0), (53, 25.0), *FLAT[53:])
    assert signs(changed(healthy, grad_norm=norms)) == [
        "base: the gradient's norm is above 10 times its median of the 20 steps before at 2 steps, "
        "35 against 2 at step 52."
    ]


def test_a_gradient_that_falls_from_its_first_steps_does_not_explode(healthy: Record) -> None:
    norms = tuple((n, 60.0 * 0.8**n + 0.1) for n in range(1, 101))
    assert signs(changed(healthy, grad_norm=norms)) == []


@pytest.mark.parametrize(("end", "is_said"), [(2.05, False), (2.2, True)])
def test_a_validation_loss_that_rises_again(healthy: Record, end: float, is_said: bool) -> None:
    record = changed(healthy, validation=((10, 3.0), (20, 2.0), (30, end)))
    wanted = f"base: validation loss was lowest at step 20 (2.000) and ended at {end:.3f}, step 30."
    assert signs(record) == [wanted] * is_said


def test_a_training_that_diverges_is_told_by_its_own_loss_alone(healthy: Record) -> None:
    training = (*FLAT[:60], *((n, 6.0) for n in range(61, 101)))
    (sign,) = signs(changed(healthy, training=training, validation=((50, 2.0), (100, 6.0))))
    assert sign == (
        "base: training loss, as a running mean, was lowest at step 1 (2.000) and ended at 6.000, "
        "step 100."
    )


def test_a_single_bad_batch_is_no_divergence(healthy: Record) -> None:
    assert signs(changed(healthy, training=(*FLAT[:60], (61, 9.0), *FLAT[61:]))) == []


def test_a_training_that_was_still_learning(healthy: Record) -> None:
    validation = tuple((n * 10, 4.0 - 0.1 * n) for n in range(1, 9))
    assert signs(changed(healthy, validation=validation)) == [
        "base: validation loss was still falling, from 3.400 at step 60 to 3.200 at step 80."
    ]


def test_a_training_under_way_is_not_blamed_for_still_learning(healthy: Record) -> None:
    validation = tuple((n * 10, 4.0 - 0.1 * n) for n in range(1, 9))
    stages = tuple(
        dataclasses.replace(stage, is_complete=stage.instance.stage != "train")
        for stage in healthy.stages
    )
    record = dataclasses.replace(healthy, stages=stages)
    assert signs(changed(record, validation=validation)) == []


def test_a_training_that_was_still_learning_is_told_of_no_other(healthy: Record) -> None:
    validation = tuple((n * 10, 4.0 - 0.1 * n) for n in range(1, 9))
    (finding,) = findings(changed(healthy, validation=validation), ())
    assert finding.tries == (
        "more train.steps: this many ended it before it had learned what it could",
    )


def test_a_training_that_never_had_a_loss_is_told(finished: Ledger) -> None:
    train = finished.of_stage("train")[0]
    lines = [{"step": n, "loss": None, "grad_norm": None} for n in range(1, STEPS + 1)]
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    for path in ("metrics.jsonl", "validation.jsonl"):
        finished.artifact(train).storage.replace(path, body)
    record = read_record(finished.run, finished.store, finished.observed)
    assert signs(record)[0] == (
        f"init=twist: {STEPS} of {STEPS} steps have no finite loss or gradient, the first of them "
        "step 1."
    )
    (losses, *_) = figures(record, set())
    assert [len(panel.lines) for panel in losses.panels] == [1, 1]  # nothing to draw of it


def test_what_does_not_beat_counting_is_told(finished: Ledger) -> None:
    record = read_record(finished.run, finished.store, finished.observed)
    said = [sign for sign in signs(record) if "counting pairs of units" in sign]
    assert said == [
        "init=cold: test perplexity 17.00 [16.60, 17.40], no lower than 15.50 [15.20, 15.80] by "
        "counting pairs of units."
    ]


@pytest.mark.parametrize(
    ("suite", "interval", "is_said"),
    [
        ("swuggy", [0.49, 0.53], True),
        ("swuggy", [0.53, 0.60], False),
        ("sblimp", [0.49, 0.53], False),
        ("swuggy", None, False),
    ],
)
def test_lexical_scores_at_chance(
    healthy: Record, suite: str, interval: list[float] | None, is_said: bool
) -> None:
    row = {"value": 0.512, "interval_95": interval, "chance": 0.5, "num_pairs": 100}
    facts = {"suite": suite, "splits": {"dev": {"all": row}}}
    stages = (*healthy.stages[:-1], dataclasses.replace(healthy.stages[-1], facts=facts))
    wanted = "base: swuggy dev, all: 51.2 [49.0, 53.0] cannot be told from chance, 50."
    assert signs(dataclasses.replace(healthy, stages=stages)) == [wanted] * is_said


def test_lexical_scores_below_chance_are_not_called_chance(healthy: Record) -> None:
    row = {"value": 0.42, "interval_95": [0.40, 0.44], "chance": 0.5, "num_pairs": 100}
    facts = {"suite": "swuggy", "splits": {"dev": {"all": row}}}
    stages = (*healthy.stages[:-1], dataclasses.replace(healthy.stages[-1], facts=facts))
    assert signs(dataclasses.replace(healthy, stages=stages)) == [
        "base: swuggy dev, all: 42.0 [40.0, 44.0] is below chance, 50."
    ]


@pytest.mark.parametrize(
    ("value", "interval", "is_said"),
    [(-0.1, (-0.2, -0.05), False), (-0.1, (-0.2, 0.05), True), (0.1, (0.05, 0.2), True)],
)
def test_a_warm_start_that_does_not_help(
    healthy: Record, value: float, interval: tuple[float, float], is_said: bool
) -> None:
    (match,) = comparisons(healthy)
    paired = Difference(
        measure="nats per token",
        value=value,
        interval_95=interval,
        num_utterances=9,
        num_left_out=0,
        perplexity_ratio=math.exp(value),
    )
    said = signs(healthy, (dataclasses.replace(match, paired=paired),))
    assert ["warm is no better" in sign for sign in said] == [True] * is_said


def test_they_stand_on_the_page_with_what_to_try(finished: Ledger) -> None:
    train = finished.of_stage("train")[0]
    lines = [{"step": n, "loss": None if n < 3 else 2.0} for n in range(1, STEPS + 1)]
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    finished.artifact(train).storage.replace("metrics.jsonl", body)
    record = read_record(finished.run, finished.store, finished.observed)
    found = findings(record, comparisons(record))
    assert found[0].sign == (
        f"init=twist: 2 of {STEPS} steps have no finite loss or gradient, the first of them step 1."
    )
    assert any("train.optimizer.lr" in way for way in found[0].tries)
