"""Differences of two models in suites, on the same pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.report.arms import comparisons
from orchestrator.report.comparison import render as render_comparison
from orchestrator.report.page import render, summary
from orchestrator.report.paired_suites import SuiteDifference, suite_differences
from orchestrator.report.record import Record, read_record
from tests.unit.orchestrator.report.conftest import Ledger, recipe_of, scores_of

WARM = [1.0, 1.0, 0.5, 1.0, 1.0, 0.0, 1.0, 1.0]
COLD = [1.0, 0.0, 0.5, 0.0, 0.0, 0.0, 1.0, 0.0]


def items(scores: list[float], fingerprint: str = "f") -> dict[str, Any]:
    """Of two strata: a mean over items, and one over strata."""
    every, half = list(range(len(scores))), len(scores) // 2
    figures = {"by pair": [every], "by type": [every[:half], every[half:]]}
    split = {"items": [f"i{n}" for n in every], "scores": scores, "figures": figures}
    return {"fingerprint": fingerprint, "splits": {"dev": split}}


def scored(folder: Path, by_variant: dict[str, dict[str, Any] | bytes], **sweep: Any) -> Ledger:
    recipe = recipe_of(
        {"model.init": ["twist", "cold"], **sweep}, evaluate={"suites": {"sblimp": {}}}
    )
    ledger = Ledger.create(folder, recipe)
    ledger.finish_data()
    for variant in ledger.plan.variants:
        ledger.finish_variant(variant["name"], scores_of(14.2, 14.1))
        instance = ledger.plan.instance(variant["instances"]["suite_scores.sblimp"])
        artifact, given = ledger.artifact(instance), by_variant[variant["name"]]
        data = given if isinstance(given, bytes) else json.dumps(given).encode()
        artifact.storage.create("items.json", data)
        row = {"value": 0.8, "interval_95": [0.6, 0.9], "chance": 0.5, "num_pairs": 8}
        facts = {"suite": "sBLIMP", "splits": {"dev": {"by pair": row}}}
        artifact.publish(inputs=instance.inputs, facts=facts, producer={})
    return ledger


def record_of(ledger: Ledger) -> Record:
    return read_record(ledger.run, ledger.store, ledger.observed)


def between(ledger: Ledger) -> tuple[SuiteDifference, ...]:
    (comparison,) = comparisons(record_of(ledger))
    return comparison.suites


def test_warm_and_cold_are_compared_on_the_same_pairs(tmp_path: Path) -> None:
    ledger = scored(tmp_path, {"init=twist": items(WARM), "init=cold": items(COLD)})
    by_pair, by_type = between(ledger)
    assert (by_pair.suite, by_pair.split, by_pair.figure) == ("sBLIMP", "dev", "by pair")
    assert by_pair.value == by_type.value == 0.5
    assert by_pair.num_pairs == 8
    assert by_pair.interval_95
    assert 0 < by_pair.interval_95[0] < 0.5 < by_pair.interval_95[1] < 1
    assert by_pair.verdict == "excludes 0"
    record = record_of(ledger)
    assert f'<td class="number">{by_pair.text}</td>' in render(record, draw=lambda _: "")
    said = summary(ledger.run, ledger.store, ledger.observed)
    assert f"sBLIMP dev, by pair: warm less cold is {by_pair.text} points, paired (95 %)" in said


def test_a_model_differs_from_itself_by_nothing(tmp_path: Path) -> None:
    ledger = scored(tmp_path, {"init=twist": items(WARM), "init=cold": items(WARM)})
    (by_pair, _) = between(ledger)
    assert (by_pair.text, by_pair.verdict) == ("+0.0 [+0.0, +0.0]", "holds 0")


def test_the_choice_of_seeds_widens_the_interval(tmp_path: Path) -> None:
    warm, other = items(WARM), items([0.0, *WARM[1:]])
    ledger = scored(
        tmp_path,
        {
            "init=twist,seed=0": warm,
            "init=twist,seed=1": other,
            "init=cold,seed=0": items(COLD),
            "init=cold,seed=1": items(COLD),
        },
        seed=[0, 1],
    )
    (several, _) = between(ledger)
    record = record_of(ledger)
    by_name = {v.name: v for v in record.variants}
    one = [[(record, by_name[f"init={init},seed=0"])] for init in ("twist", "cold")]
    (single, _) = suite_differences(*one)
    assert several.interval_95
    assert single.interval_95
    assert several.interval_95[1] - several.interval_95[0] > 1.5 * (
        single.interval_95[1] - single.interval_95[0]
    )


@pytest.mark.parametrize(
    "other",
    [
        items(COLD, fingerprint="of other files"),
        items(COLD[:4]),
        b"",
        b"{}",
        b'{"fingerprint": "f", "splits": {"dev": {"items": ["a"], "scores": [1], "figures": {"x": '
        b"[[3]]}}}}",
    ],
)
def test_what_cannot_be_paired_is_left_out(tmp_path: Path, other: dict[str, Any] | bytes) -> None:
    ledger = scored(tmp_path, {"init=twist": items(WARM), "init=cold": other})
    assert between(ledger) == ()
    render(record_of(ledger), draw=lambda _: "")


def test_runs_are_compared_with_the_first(tmp_path: Path) -> None:
    both = {"init=twist": items(WARM), "init=cold": items(COLD)}
    ledgers = [scored(tmp_path / name, both) for name in ("a", "b")]
    page = render_comparison([record_of(ledger) for ledger in ledgers], draw=lambda _: "")
    assert "by a bootstrap that draws the same pairs for both" in page
    assert '<td class="number">+0.0 [+0.0, +0.0]</td><td>holds 0</td>' in page
