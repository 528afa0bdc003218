"""What is said of several runs beside each other."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import RequestError
from orchestrator.ledger.storage import Storage
from orchestrator.report.across import (
    against_first,
    effort_rows,
    overlaid,
    recipe_differences,
    sentences,
    suite_table,
    systems,
)
from orchestrator.report.comparison import render
from orchestrator.report.paired import PairedScores
from orchestrator.report.record import Record, read_record
from tests.unit.orchestrator.report.conftest import Ledger, nll_table, recipe_of, scores_of

NewLedger = Callable[..., Ledger]
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
    assert row.remark == (
        "lower than the first; other units, which shift it by themselves: this ranks none"
    )
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


def test_values_that_differ_late_differ_on_the_page(tmp_path: Path) -> None:
    """Both begin with the same hundred letters, of which the page has no room."""
    models = [{"text_model": f"{'m' * 100}-{n}", "sha256": "b" * 64} for n in (1, 2)]
    shown = systems(
        [record_of(run_of(tmp_path / m["text_model"][-1:], "a", model=m)) for m in models]
    )
    rows = {row[0]: row[1:] for row in recipe_differences(shown)}
    assert rows["model.text_model"] == (f"...{'m' * 19}-1", f"...{'m' * 19}-2")
    assert set(rows) == {"model.text_model"}


def test_time_and_throughput_stand_side_by_side(tmp_path: Path) -> None:
    rows = {row[0]: row[1:] for row in effort_rows(two(tmp_path, EASY, EASY))}
    assert rows["training, median tokens/s"] == ("256", "256")
    assert rows["attempts"] == ("8, 0 of them failed or lost",) * 2
    assert rows["elapsed"][0] == "4 min 40 s"
    assert rows["artifacts taken over"][0] == "0 of 8"


def test_what_has_not_begun_is_not_taken_over(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path, recipe_of({}, name="waiting"))
    ledger.publish(ledger.of_stage("corpus")[0], run="earlier-run")
    rows = {row[0]: row[1:] for row in effort_rows(systems([record_of(ledger)]))}
    assert rows["artifacts taken over"] == ("1 of 8",)


def test_curves_lie_over_tokens_where_batches_differ(tmp_path: Path) -> None:
    (figure,) = overlaid(two(tmp_path, EASY, EASY, train={"global_batch_tokens": 256}))
    assert figure.x_label == "tokens seen"
    ends = [line.points[-1][0] for line in figure.panels[0].lines]
    assert ends == [40 * 128, 40 * 256]
    assert len({style.colour for style in figure.styles}) == 2


def test_repeats_kept_or_not_are_other_units(tmp_path: Path) -> None:
    """Of the same codebook, and as many tokens a step: each second of audio is what is counted."""
    kept = {"num_clusters": 100, "deduplicate": False}
    shown = two(tmp_path, EASY, EASY, tokenizer=kept)
    shown[1].record.of_stage("pack")[0].facts["splits"]["valid"]["num_tokens"] *= 2
    assert shown[0].codebook == shown[1].codebook
    assert shown[1].units_text.startswith("100 units, repeats kept, 55.7 tokens/s")
    assert sentences(shown)[0].startswith("These models have different units")
    (figure,) = overlaid(shown)
    assert figure.x_label == "seconds of audio seen"
    assert {panel.unit for panel in figure.panels} == {"nats per second of audio"}
    (row,) = against_first(shown, PairedScores())
    assert row.difference
    assert row.difference.measure == "nats per second of audio"  # as many tokens, by chance
    rates = [78 * 16_000 / 44_800 * times for times in (1, 2)]
    ends = [line.points[-1][0] for line in figure.panels[0].lines]
    assert ends == [round(40 * 128 / rate) for rate in rates]


def test_without_a_recipe_units_are_not_taken_to_be_the_same(tmp_path: Path) -> None:
    """What a step took in is then known of the training's facts alone."""
    ledgers = [run_of(tmp_path / name, name, EASY) for name in ("a", "b")]
    ledgers[1].run.storage.delete("recipe.yaml")
    shown = systems([record_of(ledger) for ledger in ledgers])
    label = shown[1].label
    assert sentences(shown) == (
        f"The units of {label} are not known: perplexity per token may say nothing across these "
        "models.",
    )
    (figure,) = overlaid(shown)
    assert (figure.x_label, figure.panels[0].unit) == ("step", "nats per second of audio")
    (row,) = against_first(shown, PairedScores())
    assert row.difference
    assert row.difference.measure == "nats per token"  # one codebook, as many tokens of each


def test_where_a_step_s_tokens_are_not_known_curves_lie_over_steps(tmp_path: Path) -> None:
    other = {"steps": 40, "context_length": 32, "global_batch_tokens": 256}
    ledgers = [run_of(tmp_path / "a", "a"), run_of(tmp_path / "b", "b", train=other)]
    ledgers[1].run.storage.delete("recipe.yaml")
    first, second = systems([record_of(ledger) for ledger in ledgers])
    stages = tuple(
        dataclasses.replace(s, facts={} if s.instance.stage == "train" else s.facts)
        for s in second.record.stages
    )
    bare = dataclasses.replace(second, record=dataclasses.replace(second.record, stages=stages))
    assert (second.tokens_per_step, bare.tokens_per_step) == (128, None)  # by conftest's facts
    (figure,) = overlaid((first, bare))
    assert figure.x_label == "step"
    assert [line.points[-1][0] for line in figure.panels[0].lines] == [40, 40]


def test_a_curve_that_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    first, second = two(tmp_path, EASY, EASY, tokenizer={"num_clusters": 50})
    second.record.of_stage("pack")[0].facts["splits"].clear()
    (figure,) = overlaid((first, second))
    assert [style.label for style in figure.styles] == [first.label]
    assert sentences((first, second))[1] == (
        f"No curve of {second.label}: how many tokens a second of its speech has is not known."
    )


class CountedReads(Storage):
    """A folder that knows how often each of its files was read."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.reads: Counter[str] = Counter()

    def read_bytes(self, path: str, *, start: int = 0) -> bytes:
        self.reads[path] += 1
        return super().read_bytes(path, start=start)


def test_nll_by_utterance_is_read_once(finished: Ledger, tmp_path: Path) -> None:
    """That of both arms of a run too, from which the shown ones are chosen."""
    for instance in finished.of_stage("perplexity"):
        table = nll_table(EASY, num_scored=10)
        finished.artifact(instance).storage.create("test.nll.parquet", table)
    counted, records = [], []
    for record in (record_of(finished), record_of(run_of(tmp_path / "a", "a", EASY))):
        variants = []
        for variant in record.variants:
            assert variant.perplexity
            storage = CountedReads(variant.perplexity.storage.url)
            counted.append(storage)
            scored = dataclasses.replace(variant.perplexity, storage=storage)
            variants.append(dataclasses.replace(variant, perplexity=scored))
        records.append(dataclasses.replace(record, variants=tuple(variants)))
    render(records, draw=lambda _: "")
    assert [storage.reads["test.nll.parquet"] for storage in counted] == [1, 1, 1]


def test_variants_that_are_not_shown_are_named(new_ledger: NewLedger, tmp_path: Path) -> None:
    ledger = new_ledger({"train.optimizer.lr": [0.001, 0.002, 0.003]})
    ledger.finish_data()
    ledger.finish_variant("lr=0.002", scores_of(14.0, 14.1))
    shown = systems([record_of(ledger), record_of(run_of(tmp_path / "other", "other"))])
    assert len(shown) == 2
    assert sentences(shown) == (
        f"Of {ledger.run.name} only the best setting of each arm is shown; left out: lr=0.001; "
        "lr=0.003.",
    )


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
