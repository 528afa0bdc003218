from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.report.arms import Comparison, comparisons
from orchestrator.report.page import render
from orchestrator.report.record import read_record
from tests.unit.orchestrator.report.conftest import Ledger, nll_table, scores_of

NewLedger = Callable[..., Ledger]
SWEEP = {"model.init": ["twist", "cold"], "train.optimizer.lr": [0.001, 0.003]}


def contest_of(ledger: Ledger) -> Comparison:
    (comparison,) = comparisons(read_record(ledger.run, ledger.store, ledger.observed))
    return comparison


def scored(
    ledger: Ledger, by_name: dict[str, tuple[float, float]], half_width: float = 0.4
) -> Comparison:
    for name, (valid, test) in by_name.items():
        ledger.finish_variant(name, scores_of(valid, test, half_width))
    return contest_of(ledger)


def test_the_best_is_chosen_on_valid_whatever_test_says(new_ledger: NewLedger) -> None:
    comparison = scored(
        new_ledger(SWEEP),
        {
            "init=twist,lr=0.001": (14.0, 15.0),
            "init=twist,lr=0.003": (14.5, 13.0),
            "init=cold,lr=0.001": (18.0, 11.0),
            "init=cold,lr=0.003": (17.0, 17.5),
        },
    )
    assert comparison.arms["warm"].variants == ("init=twist,lr=0.001",)
    assert comparison.arms["cold"].variants == ("init=cold,lr=0.003",)
    assert comparison.arms["warm"].test.perplexity == 15.0
    assert comparison.sentences[0] == (
        "In this run, warm start is better: test perplexity 15.00 [14.60, 15.40] warm, "
        "17.50 [17.10, 17.90] cold, 14.3 % lower; the 95 % intervals do not overlap."
    )
    assert comparison.sentences[1] == (
        "Each arm's setting was chosen on the validation split (warm: train.optimizer.lr=0.001, "
        "out of 2; cold: train.optimizer.lr=0.003, out of 2) and is reported on test."
    )


@pytest.mark.parametrize(
    ("warm", "cold", "start", "end"),
    [
        (14.0, 14.8, "no difference can be claimed", "cold; the 95 % intervals overlap."),
        (14.0, 14.81, "warm start is better", "5.5 % lower; the 95 % intervals do not overlap."),
        (15.0, 14.0, "cold start is better", "6.7 % lower; the 95 % intervals do not overlap."),
    ],
)
def test_the_sentence_goes_as_far_as_the_intervals(
    new_ledger: NewLedger, warm: float, cold: float, start: str, end: str
) -> None:
    comparison = scored(new_ledger(), {"init=twist": (warm, warm), "init=cold": (cold, cold)})
    assert comparison.sentences[0].startswith(f"In this run, {start}: test perplexity {warm:.2f} [")
    assert comparison.sentences[0].endswith(end)


def test_without_intervals_nothing_is_claimed(new_ledger: NewLedger) -> None:
    ledger = new_ledger()
    for name, perplexity in {"init=twist": 10.0, "init=cold": 30.0}.items():
        scores = scores_of(perplexity, perplexity)
        del scores["splits"]["test"]["model"]["perplexity_95"]
        ledger.finish_variant(name, scores)
    assert contest_of(ledger).sentences[0] == (
        "In this run, no difference can be claimed: test perplexity 10.00 warm, 30.00 cold, "
        "and no 95 % intervals."
    )


def test_of_a_single_test_utterance_nothing_is_claimed(new_ledger: NewLedger) -> None:
    """Its interval has no width, so that two of them never overlap."""
    ledger = new_ledger()
    for name, perplexity in {"init=twist": 10.85, "init=cold": 12.13}.items():
        ledger.finish_variant(name, scores_of(perplexity, perplexity, half_width=0.0))
    assert contest_of(ledger).sentences[0] == (
        "In this run, no difference can be claimed: test perplexity 10.85 warm, 12.13 cold, "
        "and no 95 % intervals."
    )


def test_an_interval_spans_those_of_all_seeds(new_ledger: NewLedger) -> None:
    sweep = {"model.init": ["twist", "cold"], "seed": [0, 1, 2]}
    warm = {f"init=twist,seed={n}": (p, p) for n, p in enumerate((13.0, 14.0, 15.0))}
    cold = {f"init=cold,seed={n}": (p, p) for n, p in enumerate((15.5, 16.0, 17.0))}
    comparison = scored(new_ledger(sweep), {**warm, **cold})
    test = comparison.arms["warm"].test
    assert test.perplexity_95 == (12.6, 15.4)
    assert test.perplexity == pytest.approx((13 * 14 * 15) ** (1 / 3))
    assert "no difference can be claimed" in comparison.sentences[0]  # 15.4 reaches cold's 15.1
    assert comparison.sentences[2] == (
        "At least 3 training seeds an arm; each interval spans those of all its seeds."
    )


def test_what_waits_for_scores_is_said_first(new_ledger: NewLedger) -> None:
    comparison = scored(
        new_ledger(SWEEP),
        {
            "init=twist,lr=0.001": (14.0, 14.0),
            "init=twist,lr=0.003": (14.5, 14.5),
            "init=cold,lr=0.001": (18.0, 18.0),
        },
    )
    assert comparison.sentences[0].startswith("So far, with 1 variants not scored yet, warm start")
    assert comparison.sentences[1].endswith("; the arms were not tuned equally.")


def test_one_arm_is_compared_with_nothing(new_ledger: NewLedger) -> None:
    comparison = scored(new_ledger({}), {"base": (14.0, 14.0)})
    assert comparison.sentences == (
        "Warm start: test perplexity 14.00 [13.60, 14.40]; the run has no cold arm, so nothing can "
        "be compared.",
    )


@pytest.mark.parametrize(
    ("warm", "cold", "start"),
    [
        (14.0, 14.5, None),
        (14.0, 16.0, "The cold arm does not beat counting pairs of units: the bigram baseline"),
        (16.5, 16.0, "Neither arm beats counting pairs of units: the bigram baseline"),
    ],
)
def test_losing_to_the_bigram_baseline_is_said(
    new_ledger: NewLedger, warm: float, cold: float, start: str | None
) -> None:
    comparison = scored(new_ledger(), {"init=twist": (warm, warm), "init=cold": (cold, cold)})
    said = [s for s in comparison.sentences if "bigram" in s]
    assert [s.startswith(start or "") for s in said] == ([True] if start else [])


def test_counting_single_units_may_be_the_harder_baseline(new_ledger: NewLedger) -> None:
    scores = scores_of(14.0, 14.0)
    scores["splits"]["test"]["unigram"]["perplexity"] = 15.0
    ledger = new_ledger({})
    ledger.finish_variant("base", scores)
    assert (
        contest_of(ledger)
        .sentences[-1]
        .startswith(
            "Counting single units does better than counting pairs here, with perplexity 15.00 ["
        )
    )


@pytest.mark.parametrize(
    "swept",
    [
        {"tokenizer.num_clusters": [50, 100]},
        {"train.steps": [20, 40]},
        {"model.num_layers": [1, 2]},
    ],
)
def test_other_units_budgets_and_architectures_are_not_compared(
    new_ledger: NewLedger, swept: dict[str, list[Any]]
) -> None:
    ledger = new_ledger({"model.init": ["twist", "cold"], **swept})
    found = comparisons(read_record(ledger.run, ledger.store, ledger.observed))
    assert [len(c.variants) for c in found] == [2, 2]
    assert found[0].label != found[1].label
    for comparison in found:
        assert {v.arm for v in comparison.variants} == {"warm", "cold"}


def test_warm_catches_up_with_colds_last_validation_loss(new_ledger: NewLedger) -> None:
    # Straight curves: warm falls by 2.0 over 40 steps, cold by 1.6; that is step 32, seen at 40.
    ledger = new_ledger()
    comparison = scored(ledger, {"init=twist": (14.0, 14.0), "init=cold": (18.0, 18.0)})
    assert not [s for s in comparison.sentences if s.startswith("On validation")]
    cold = ledger.of_stage("train")[1]
    lines = b'{"step": 20, "loss": 4.2}\n{"step": 40, "loss": 4.0}\n'
    ledger.artifact(cold).storage.replace("validation.jsonl", lines)
    assert (
        "On validation, warm has cold's last loss (4.000, step 40) by step 20; validated only at "
        "the steps that the curve marks. Between them the loss is taken to fall straight: warm "
        "needs 0.30 of cold's updates."
    ) in contest_of(ledger).sentences


def test_the_convergence_ratio_is_read_between_validations(new_ledger: NewLedger) -> None:
    """Warm falls by 2.0 over 40 steps and cold by 1.6: warm is there at step 32."""
    comparison = scored(new_ledger(), {"init=twist": (14.0, 14.0), "init=cold": (18.0, 18.0)})
    assert comparison.convergence
    assert comparison.convergence.ratios == (pytest.approx(0.8),)
    assert comparison.convergence.short == "0.80"
    assert comparison.convergence.num_never == 0


def three_seeds(new_ledger: NewLedger, cold_ends: dict[int, float]) -> Ledger:
    """Warm falls to 2.6 over 40 steps; cold of each seed ends where it is told, in any order."""
    seeds = list(cold_ends)
    ledger = new_ledger(
        {
            "arm": {
                **{f"warm{n}": {"model.init": "twist", "seed": n} for n in sorted(seeds)},
                **{f"cold{n}": {"model.init": "cold", "seed": n} for n in seeds},
            }
        }
    )
    for variant in ledger.plan.variants:
        is_warm, seed = "warm" in variant["name"], variant["overrides"]["seed"]
        ledger.finish_variant(variant["name"], scores_of(*(2 * [14.0 if is_warm else 18.0])))
        storage = ledger.artifact(ledger.plan.instance(variant["instances"]["train"])).storage
        warm = [{"step": n, "loss": 4.6 - 0.05 * n} for n in (10, 20, 30, 40)]
        lines = warm if is_warm else [{"step": 40, "loss": cold_ends[seed]}]
        body = "".join(json.dumps(line) + "\n" for line in lines)
        storage.replace("validation.jsonl", body.encode())
    return ledger


def test_the_convergence_ratio_has_a_range_over_seeds(new_ledger: NewLedger) -> None:
    found = contest_of(three_seeds(new_ledger, {0: 4.0, 1: 3.6, 2: 3.0})).convergence
    assert found
    assert found.ratios == pytest.approx((0.3, 0.5, 0.8))
    assert found.text == "0.30 to 0.80 (mean 0.49 [0.15, 1.67], 95 % over 3 seeds)"
    assert (found.short, found.num_never) == ("0.49", 0)


def test_a_seed_that_never_got_there_leaves_no_mean(new_ledger: NewLedger) -> None:
    ledger = three_seeds(new_ledger, {0: 4.0, 1: 3.0, 2: 1.0})
    comparison = contest_of(ledger)
    assert comparison.convergence
    assert comparison.convergence.num_never == 1
    assert comparison.convergence.short == "never with 1 of 3 seeds"
    assert (
        "On validation, warm has cold's last loss never with 1 of 3 seeds, with the others after "
        "0.30 to 0.80 of cold's updates."
    ) in comparison.sentences
    page = render(read_record(ledger.run, ledger.store, ledger.observed), draw=lambda _: "")
    assert "<b>never with 1 of 3 seeds</b>" in page


def test_where_no_seed_got_there_that_is_said(new_ledger: NewLedger) -> None:
    comparison = contest_of(three_seeds(new_ledger, {0: 1.0, 1: 1.0}))
    assert comparison.convergence
    assert comparison.convergence.ratios == ()
    assert comparison.convergence.text == "never with 2 of 2 seeds"


def test_convergence_is_of_the_same_seed_in_both_arms(new_ledger: NewLedger) -> None:
    """Cold's seeds come in another order, and one of them is of no warm training."""
    ledger = three_seeds(new_ledger, {2: 3.0, 0: 4.0, 1: 3.6})
    early = ledger.artifact(ledger.plan.instance(train_of(ledger, "warm2"))).storage
    early.replace("validation.jsonl", b'{"step": 4, "loss": 2.0}\n')
    found = contest_of(ledger).convergence
    assert found
    assert found.ratios == pytest.approx((0.3, 0.5, 0.1))
    early.replace("validation.jsonl", b"")
    found = contest_of(ledger).convergence
    assert found
    assert found.ratios == pytest.approx((0.3, 0.5))


def test_a_cold_training_that_ended_without_a_loss_is_no_goal(new_ledger: NewLedger) -> None:
    ledger = three_seeds(new_ledger, {0: 4.0, 1: 4.0})
    lost = ledger.artifact(ledger.plan.instance(train_of(ledger, "cold1"))).storage
    lost.replace("validation.jsonl", b'{"step": 20, "loss": 4.0}\n{"step": 40, "loss": null}\n')
    found = contest_of(ledger).convergence
    assert found
    assert (found.ratios, found.num_never) == ((pytest.approx(0.3),), 0)  # not "never with 1 of 2"


def train_of(ledger: Ledger, name: str) -> str:
    variant = next(v for v in ledger.plan.variants if v["name"] == name)
    return str(variant["instances"]["train"])


@pytest.mark.parametrize(
    ("worse_by", "start", "end"),
    [
        ([1.0, 1.2, 0.8, 1.1], "warm start is better", "on 4 test utterances, paired (95 %)."),
        ([-9.0, 8.0, 9.5, -8.0], "no difference can be claimed", "which holds 0."),
    ],
)
def test_what_is_paired_decides_which_arm_is_better(
    new_ledger: NewLedger, worse_by: list[float], start: str, end: str
) -> None:
    """Both arms' own intervals overlap."""
    ledger = new_ledger()
    warm = [20.0, 40.0, 25.0, 60.0]
    nll = {"init=twist": warm, "init=cold": [w + d for w, d in zip(warm, worse_by, strict=True)]}
    for name, values in nll.items():
        instances = next(v for v in ledger.plan.variants if v["name"] == name)["instances"]
        storage = ledger.artifact(ledger.plan.instance(instances["perplexity"])).storage
        storage.create("test.nll.parquet", nll_table(values, num_scored=10))
    comparison = scored(ledger, {"init=twist": (14.0, 14.0), "init=cold": (14.5, 14.5)})
    assert comparison.paired
    assert comparison.paired.value == pytest.approx(-sum(worse_by) / 40)
    assert comparison.sentences[0].startswith(f"In this run, {start}: test perplexity 14.00 [")
    assert comparison.sentences[0].endswith(end)


@pytest.mark.parametrize(
    ("worse_by", "said"),
    [
        (-2.0, "The warm arm beats counting pairs of units: warm less counting is -0.200 [-0.2"),
        (2.0, "The warm arm does not beat counting pairs of units: warm less counting is +0.200 ["),
        (
            0.0,
            "Between the warm arm and counting pairs of units no difference can be claimed: warm ",
        ),
    ],
)
def test_each_arm_is_compared_with_counted_pairs_on_the_same_utterances(
    new_ledger: NewLedger, worse_by: float, said: str
) -> None:
    """Perplexities of baseline and model overlap, or even point the other way."""
    ledger = new_ledger()
    nll = [20.0, 40.0, 25.0, 60.0]
    (warm, _) = ledger.of_stage("perplexity")
    counted = [n - worse_by for n in nll]
    table = nll_table(nll, num_scored=10, bigram=counted)
    ledger.artifact(warm).storage.create("test.nll.parquet", table)
    comparison = scored(ledger, {"init=twist": (15.6, 15.6), "init=cold": (18.0, 18.0)})
    ours, theirs = [s for s in comparison.sentences if "counting" in s]
    assert ours.startswith(said)
    assert ours.endswith(
        "nats per token on 4 test utterances, paired (95 %); counting has perplexity 15.50 "
        "[15.20, 15.80]."
    )
    assert theirs.startswith("The cold arm does not beat counting pairs of units: the bigram")


def test_why_the_arms_are_not_paired_is_said(new_ledger: NewLedger) -> None:
    ledger = new_ledger()
    comparison = scored(ledger, {"init=twist": (14.0, 14.0), "init=cold": (14.5, 14.5)})
    assert comparison.sentences[-1] == (
        "The arms are not paired by utterance: init=twist, init=cold: the scores have no NLL by "
        "utterance."
    )
    for instance, body in zip(
        ledger.of_stage("perplexity"), (b"PAR1", nll_table([1.0], num_scored=1)), strict=True
    ):
        ledger.artifact(instance).storage.create("test.nll.parquet", body)
    (said,) = [s for s in contest_of(ledger).sentences if "not paired" in s]
    assert said.startswith("The arms are not paired by utterance: init=twist: NLL by utterance can")
    first = ledger.artifact(ledger.of_stage("perplexity")[0]).storage
    first.replace("test.nll.parquet", nll_table([2.0], num_scored=1))
    assert contest_of(ledger).sentences[-1] == (
        "The arms are not paired by utterance: they share fewer than two scored utterances."
    )


def test_an_arm_of_a_single_seed_is_named(new_ledger: NewLedger) -> None:
    ledger = new_ledger({"model.init": ["twist", "cold"], "seed": [0, 1]})
    ends = {"init=twist,seed=0": (14.0, 14.0), "init=twist,seed=1": (14.1, 14.1)}
    comparison = scored(ledger, {**ends, "init=cold,seed=0": (18.0, 18.0)})
    assert comparison.sentences[2].startswith("One arm has 2 training seeds and the other a single")


@pytest.mark.parametrize(
    ("swept", "labels"),
    [
        ({"split.train_fraction": [0.1, 1.0]}, ("10 % of the training split", "")),
        (
            {
                "corpus.languages": {
                    "en": {"corpus.languages": ["en"]},
                    "fr": {"corpus.languages": ["fr"]},
                }
            },
            ("en", "fr"),
        ),
        (
            {
                "rate": {
                    "a": {"encoder.layer": 1, "encoder.frame_rate_hz": 25},
                    "b": {"encoder.layer": 2},
                }
            },
            ("25 Hz", "50 Hz"),
        ),
    ],
)
def test_comparisons_are_told_apart(
    new_ledger: NewLedger, swept: dict[str, Any], labels: tuple[str, str]
) -> None:
    ledger = new_ledger({"model.init": ["twist", "cold"], **swept})
    found = comparisons(read_record(ledger.run, ledger.store, ledger.observed))
    for comparison, label in zip(found, labels, strict=True):
        assert label in comparison.label
    assert found[0].label != found[1].label


def test_a_validation_without_a_loss_is_passed_over_in_the_convergence_ratio(
    new_ledger: NewLedger,
) -> None:
    ledger = new_ledger()
    scored(ledger, {"init=twist": (14.0, 14.0), "init=cold": (18.0, 18.0)})
    warm = ledger.of_stage("train")[0]
    lines = b'{"step": 10, "loss": 4.0}\n{"step": 20, "loss": null}\n{"step": 30, "loss": 2.0}\n'
    ledger.artifact(warm).storage.replace("validation.jsonl", lines)
    found = contest_of(ledger).convergence
    assert found
    assert found.ratios == (pytest.approx(0.5),)  # 3.0, half-way from step 10 to step 30, of 40
