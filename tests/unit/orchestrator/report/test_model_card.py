"""What a model card says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.report.model_card import encoder_text, model_card
from orchestrator.report.page import render, summary
from orchestrator.report.record import read_record
from orchestrator.spec.recipe import Encoder
from tests.unit.orchestrator.report.conftest import (
    TEST_PERPLEXITY,
    Ledger,
    recipe_of,
    scores_of,
)

UNITS: dict[str, Any] = {
    "num_units": 100,
    "deduplicated": True,
    "normalize_waveform": False,
    "codebook": {"dim": 192, "sha256": "e" * 64},
}


def cards(ledger: Ledger) -> dict[str, str]:
    """By the init of the variant."""
    record = read_record(ledger.run, ledger.store, ledger.observed)
    recipes = {v.name: v.recipe for v in ledger.run.variants()}
    return {
        v.name.removeprefix("init="): model_card(record, v, recipes[v.name], UNITS)
        for v in record.variants
    }


def test_it_tells_the_arms_apart_and_gives_their_scores(finished: Ledger) -> None:
    found = cards(finished)
    assert "whose vocabulary was replaced by 100 units" in found["twist"]
    assert "every weight drawn anew (the cold arm)" in found["cold"]
    for init, perplexity in TEST_PERPLEXITY.items():
        interval = f"[{perplexity - 0.4:.2f}, {perplexity + 0.4:.2f}]"
        assert f"| test | {perplexity:.2f} {interval} | 96.30 [" in found[init]
        for stage in ("tokenize", "pack", "train"):
            assert any(f"| `{i.key}` |" in found[init] for i in finished.of_stage(stage))


def test_its_front_matter_is_yaml(finished: Ledger) -> None:
    for card in cards(finished).values():
        _, front, _ = card.split("---\n", 2)
        assert yaml.safe_load(front)["library_name"] == "transformers"


def test_a_run_without_scores_says_so(finished: Ledger) -> None:
    for instance in finished.of_stage("perplexity"):
        finished.artifact(instance).storage.delete("scores.json")
    assert all("None: the run has scored nothing yet." in card for card in cards(finished).values())


@pytest.mark.parametrize(
    ("suites", "shown"),
    [
        ({"sblimp": {}}, "sBLIMP"),
        ({"sblimp_like": {"kind": "sblimp"}}, "sblimp_like (sBLIMP)"),
    ],
)
def test_scores_of_suites_stand_in_card_page_and_summary(
    tmp_path: Path, suites: dict[str, Any], shown: str
) -> None:
    recipe = recipe_of({}, evaluate={"suites": suites})
    ledger = Ledger.create(tmp_path, recipe)
    ledger.finish_data()
    ledger.finish_variant("base", scores_of(14.2, 14.1))
    (instance,) = ledger.of_stage("suite_scores")
    row = {"value": 0.567, "interval_95": [0.5, 0.625], "chance": 0.5, "num_pairs": 6300}
    facts = {"suite": "sBLIMP", "splits": {"dev": {"by pair": row}}}
    ledger.artifact(instance).publish(inputs=instance.inputs, facts=facts, producer={})
    line = f"| {shown} | dev | by pair | 56.7 [50.0, 62.5] | 50 | 6,300 |"
    assert line in cards(ledger)["base"]
    page = render(read_record(ledger.run, ledger.store, ledger.observed), draw=lambda _: "")
    assert '<td class="number">56.7 [50.0, 62.5]</td>' in page
    assert f'<th scope="row">{shown}</th>' in page
    said = summary(ledger.run, ledger.store, ledger.observed)
    assert f"{shown} dev, by pair: 56.7 [50.0, 62.5] %, chance 50 (base)" in said


def test_encoders() -> None:
    hub = Encoder(model="a/b", revision="0123456789abcdef" * 2 + "01234567", layer=3)
    assert encoder_text(hub) == "`a/b` at `0123456789ab`"
    assert encoder_text(Encoder(model="x", sha256="c" * 64, layer=3)).endswith(f"`{'c' * 64}`")
