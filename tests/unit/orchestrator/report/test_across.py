"""What is said of several runs beside each other."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import RequestError
from orchestrator.report.across import (
    against_first,
    effort_rows,
    overlaid,
    recipe_differences,
    sentences,
    suite_table,
    systems,
)
from orchestrator.report.paired import PairedScores
from orchestrator.report.record import Record, read_record
from tests.unit.orchestrator.report.conftest import Ledger, nll_table, recipe_of, scores_of

EASY = [20.0, 30.0, 25.0, 28.0]


def run_of(folder: Path, name: str, nll: list[float] | None = None, **over: Any) -> Ledger:
    """A finished run of one warm model, with NLL by utterance where given."""
    folder.mkdir(exist_ok=True)
    ledger = Ledger.create(folder, recipe_of({}, name=name, **over))
    ledger.finish_data()
    (perplexity,) = ledger.of_stage("perplexity")
    if nll is not None:
        table = nll_table(nll, num_scored=10)
        ledger.artifact(perplexity).storage.create("test.nll.parquet", table)
    ledger.finish_variant("base", scores_of(14.0, 14.1))
    return ledger


def record_of(ledger: Ledger) -> Record:
    return read_record(ledger.run, ledger.store, ledger.observed)


def two(tmp_path: Path, first: list[float] | None, second: list[float] | None, **over: Any) -> Any:
    """A run, and another that differs in its learning rate besides."""
    train = {"steps": 40, "context_length": 32, "global_batch_tokens": 128}
    train |= over.pop("train", {}) | {"optimizer": {"lr": 0.002}}
    ledgers = [
        run_of(tmp_path / "a", "a", first),
        run_of(tmp_path / "b", "b", second, train=train, **over),
    ]
    return systems([record_of(ledger) for ledger in ledgers])


def test_a_paired_difference_is_found_where_intervals_overlap(tmp_path: Path) -> None:
    shown = two(tmp_path, EASY, [nll + 1 for nll in EASY])
    (row,) = against_first(shown, PairedScores())
    assert row.difference
    assert row.difference.value == pytest.approx(0.1)
    assert row.remark == "worse than the first: perplexity 10.5 % higher"
    assert sentences(shown) == ()
    (unsure,) = against_first([shown[0], shown[0]], PairedScores())
    assert unsure.remark == "no difference can be claimed: the interval holds 0"


def test_other_units_are_compared_per_second_alone(tmp_path: Path) -> None:
    shown = two(tmp_path, EASY, [nll - 5 for nll in EASY], tokenizer={"num_clusters": 50})
    (row,) = against_first(shown, PairedScores())
    assert row.difference
    assert row.difference.measure == "nats per second of audio"
    assert row.remark == "better than the first, by 5.000 nats per second of audio"
    (said,) = sentences(shown)
    assert said.startswith("These models have different units: perplexity per token says nothing")
    (figure,) = overlaid(shown)
    assert {panel.unit for panel in figure.panels} == {"nats per second of audio"}
    rate = 78 * 16_000 / 44_800  # of the validation split in conftest's facts
    step, loss = figure.panels[1].lines[0].points[0]
    assert (step, loss) == (10, pytest.approx((4.6 - 1.6 * 10 / 40) * rate))


def test_what_was_not_scored_is_paired_with_nothing(tmp_path: Path) -> None:
    shown = two(tmp_path, EASY, None)
    (row,) = against_first(shown, PairedScores())
    assert row.difference is None
    assert row.remark == f"{shown[1].label}: the scores have no NLL by utterance"


def test_models_whose_perplexities_are_worlds_apart_differ_by_their_nll(tmp_path: Path) -> None:
    """Where the ratio of both is no figure to read, and 800 nats have none at all."""
    (row,) = against_first(two(tmp_path, EASY, [nll + 8000 for nll in EASY]), PairedScores())
    assert row.remark == "worse than the first, by 800.000 nats per token"


def test_a_model_that_gives_no_probabilities_is_no_equal(tmp_path: Path) -> None:
    shown = two(tmp_path, EASY, [*EASY[:2], math.nan, math.inf])
    (row,) = against_first(shown, PairedScores())
    assert row.difference is None
    assert row.remark == (
        f"{shown[1].label}: the NLL of 2 of 4 utterances is not finite, the first utt-2: the model "
        "gives no probabilities there"
    )


def test_runs_that_are_not_scored_yet_are_named(tmp_path: Path) -> None:
    waiting = Ledger.create(tmp_path, recipe_of({}, name="waiting"))
    shown = systems([record_of(waiting), record_of(run_of(tmp_path / "a", "a", EASY))])
    (row,) = against_first(shown, PairedScores())
    assert row.remark == f"{waiting.run.name}: no test scores yet"
    assert sentences(shown) == (f"Not scored yet: {waiting.run.name}.",)


def test_suites_stand_side_by_side_where_both_have_them(tmp_path: Path) -> None:
    first, other = two(tmp_path, EASY, EASY)
    row = {"value": 0.6, "interval_95": [0.55, 0.65], "chance": 0.5, "num_pairs": 100}
    stage = first.record.stages[-1]
    instance = dataclasses.replace(stage.instance, stage="suite_scores")
    scored = dataclasses.replace(
        stage,
        status=dataclasses.replace(stage.status, instance=instance),
        facts={"suite": "sWUGGY", "splits": {"dev": {"all": row}}},
    )
    record = dataclasses.replace(first.record, stages=(*first.record.stages[:-1], scored))
    shown = (dataclasses.replace(first, record=record), other)
    assert suite_table(shown) == (("sWUGGY", "dev", "all", "60.0 [55.0, 65.0]", "-"),)
    assert suite_table((first, other)) == ()


def test_recipes_differ_by_key(tmp_path: Path) -> None:
    rows = recipe_differences(two(tmp_path, EASY, EASY))
    assert [row[0] for row in rows] == ["train.optimizer.lr"]
    assert rows[0][2] == "0.002"


def test_time_and_throughput_stand_side_by_side(tmp_path: Path) -> None:
    rows = {row[0]: row[1:] for row in effort_rows(two(tmp_path, EASY, EASY))}
    assert rows["training, median tokens/s"] == ("256", "256")
    assert rows["attempts"] == ("8, 0 of them failed or lost",) * 2
    assert rows["elapsed"][0] == "4 min 40 s"
    assert rows["artifacts taken over"][0] == "0 of 8"


def test_curves_lie_over_tokens_where_batches_differ(tmp_path: Path) -> None:
    (figure,) = overlaid(two(tmp_path, EASY, EASY, train={"global_batch_tokens": 256}))
    assert figure.x_label == "tokens seen"
    ends = [line.points[-1][0] for line in figure.panels[0].lines]
    assert ends == [40 * 128, 40 * 256]
    assert len({style.colour for style in figure.styles}) == 2


def test_of_a_sweep_the_best_of_each_arm_is_shown(finished: Ledger, tmp_path: Path) -> None:
    other = run_of(tmp_path / "other", "other")
    shown = systems([record_of(other), record_of(finished)])
    name = finished.run.name
    assert [s.label for s in shown] == [other.run.name, f"{name} init=twist", f"{name} init=cold"]


def test_a_run_that_is_given_twice_is_refused(finished: Ledger) -> None:
    record = record_of(finished)
    with pytest.raises(RequestError, match="given twice; name different runs"):
        systems([record, record])


def test_a_run_that_trains_nothing_is_refused(finished: Ledger, tmp_path: Path) -> None:
    record = record_of(finished)
    for variant in record.variants:
        assert isinstance(variant.instances, dict)
        del variant.instances["train"]
    with pytest.raises(RequestError, match="trains no language model, so that it has no scores"):
        systems([record_of(run_of(tmp_path / "other", "other")), record])
