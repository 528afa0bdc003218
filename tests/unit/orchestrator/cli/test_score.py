"""What ``orchestrator score`` refuses before anything is scored, and the table that it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.main import main
from orchestrator.cli.score import show
from orchestrator.errors import ExitCode
from tests.unit.orchestrator.recipes import cluster


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder in Hugging Face format, a suite's folder and a cluster file beside it."""
    for name in ("model", "suite"):
        (tmp_path / name).mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    store = cluster(str(tmp_path / "store"))
    (tmp_path / "c.yaml").write_text(json.dumps(store.model_dump(mode="json", exclude_unset=True)))
    return tmp_path / "model"


def said(capsys: pytest.CaptureFixture[str], model: Path, *words: str) -> str:
    """What is said of a request that is refused."""
    where = ("--cluster", str(model.parent / "c.yaml"))
    suite = f"swuggy={model.parent / 'suite'}"
    assert main(["score", str(model), suite, *words, *where]) == ExitCode.BAD_REQUEST
    return capsys.readouterr().err


def test_what_cannot_be_scored_is_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "one kind is named twice" in said(capsys, model, f"swuggy={model}")
    assert "--bootstrap-samples: must be" in said(capsys, model, "--bootstrap-samples", "9")
    assert "--seed: -1 is below 0" in said(capsys, model, "--seed", "-1")
    assert "for another variant of MODEL itself" in said(capsys, model, "--against-variant", "v")
    several = f"{model.parent}: is a folder of models; name one: {model}"
    assert several in said(capsys, model, "--tokenizer", str(model.parent))
    assert "-o: " in said(capsys, model, "-o", str(model))
    assert "name by --tokenizer" in said(capsys, model)
    assert "--variant: is of a run" in said(capsys, model, "--variant", "base")
    assert "no such run" in said(capsys, model, "--tokenizer", "none")
    (model / "units.json").write_text("{}")
    assert "is not what `orchestrator export` writes" in said(capsys, model)


def test_the_other_model_has_its_own_units_where_its_folder_says_them(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = {
        "num_units": 5,
        "layer": 1,
        "output": "after_residual",
        "precision": "fp32",
        "normalize_waveform": False,
        "deduplicated": True,
        "encoder": {"folder": "encoder"},
    }
    (model / "units.json").write_text(json.dumps(about))
    other = model.parent / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    (other / "units.json").write_text("{}")
    words = ("--tokenizer", str(model), "--against", str(other))
    assert f"{other / 'units.json'}: is not what" in said(capsys, model, *words)
    variant = said(capsys, model, *words, "--against-variant", "base")
    assert "--against-variant: is of a run" in variant


def test_the_table_names_interval_chance_and_rule(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    row = {"value": 0.567, "interval_95": [0.5, 0.625], "chance": 0.5, "num_pairs": 6300}
    figures = [{"name": "by pair", "table": "", **row}, {"name": "a", "table": "type", **row}]
    scores = {
        "name": "sBLIMP",
        "measure": "mean log-probability per scored token",
        "likelihood_rule": "no BOS; no EOS",
        "rule": "a pair counts 1",
        "splits": {"dev": {"figures": figures, "num_near_ties": 3}},
    }
    show({"model": "m", "suites": {"sblimp": scores}})
    shown = capsys.readouterr().out
    head, line, rule = shown.splitlines()
    assert head.split() == [
        "suite",
        "split",
        "figure",
        "score",
        "95",
        "%",
        "interval",
        "chance",
        "pairs",
    ]
    assert line.split() == [
        "sBLIMP",
        "dev",
        "by",
        "pair",
        "56.7",
        "50.0",
        "to",
        "62.5",
        "50",
        "6,300",
    ]
    assert rule == (
        "sblimp: mean log-probability per scored token; no BOS; no EOS; a pair counts 1; "
        "3 pairs closer than 1e-5"
    )


def test_a_comparison_has_both_models_and_their_difference(
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = {"name": "all", "table": "", "interval_95": [0.5, 0.7], "chance": 0.5, "num_pairs": 4}
    scores = {"name": "sWUGGY", "measure": "m", "likelihood_rule": "l", "rule": "r"}

    def one(value: float) -> dict[str, Any]:
        split = {"figures": [{**row, "value": value}], "num_near_ties": 0}
        return {"swuggy": {**scores, "splits": {"dev": split}}}

    apart = {"name": "all", "table": "", "difference": -0.05, "difference_95": [-0.08, -0.02]}
    differences = {"swuggy": {"name": "sWUGGY", "splits": {"dev": {"figures": [apart]}}}}
    against = {"model": "cold", "suites": one(0.65)}
    show({"model": "warm", "suites": one(0.6), "against": against, "differences": differences})
    _, warm, cold, _, difference, _ = capsys.readouterr().out.splitlines()
    assert warm.split()[:5] == ["warm", "sWUGGY", "dev", "all", "60.0"]
    assert cold.split()[:5] == ["cold", "sWUGGY", "dev", "all", "65.0"]
    assert difference.split() == ["sWUGGY", "dev", "all", "-5.0", "-8.0", "to", "-2.0"]


def test_a_single_pair_has_no_interval(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    row = {"value": 1.0, "interval_95": None, "chance": 0.5, "num_pairs": 1, "table": ""}
    difference = {"name": "by pair", "table": "", "difference": 1.0, "difference_95": None}
    one = {"measure": "m", "likelihood_rule": "l", "rule": "r", "name": "sBLIMP"}
    splits = {"dev": {"figures": [{"name": "by pair", **row}], "num_near_ties": 0}}
    show(
        {
            "model": "m",
            "suites": {"sblimp": {**one, "splits": splits}},
            "differences": {
                "sblimp": {"name": "sBLIMP", "splits": {"dev": {"figures": [difference]}}}
            },
        }
    )
    _, line, _, apart, _ = capsys.readouterr().out.splitlines()
    assert line.split() == ["sBLIMP", "dev", "by", "pair", "100.0", "none", "50", "1"]
    assert apart.split() == ["sBLIMP", "dev", "by", "pair", "+100.0", "none"]
