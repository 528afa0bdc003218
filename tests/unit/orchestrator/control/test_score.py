"""What is named to be scored: suites, runs and folders, and what ``jobs.score`` is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.control.export_model import export_models
from orchestrator.control.score import (
    Scoring,
    Tokenizer,
    checkpoint_of_run,
    is_model_folder,
    model_in_folder,
    model_of_run,
    score,
    suite_named,
    tokenizer_of_export,
    tokenizer_of_run,
)
from orchestrator.errors import RequestError, RunFailedError
from orchestrator.ledger import checkpoints
from orchestrator.ledger.checkpoints import Manifest
from orchestrator.spec.cluster import Cluster
from tests.unit.orchestrator.control.test_export_model import trained
from tests.unit.orchestrator.recipes import cluster
from tests.unit.orchestrator.report.conftest import Ledger, recipe_of

WARM = "init=twist"


def tokenizer_in(folder: Path, **changes: Any) -> Tokenizer:
    about = {
        "encoder_url": "",
        "published": {"model": str(folder), "revision": None, "sha256": "a" * 64},
        "codebook_url": str(folder),
        "num_units": 5,
        "layer": 1,
        "output": "after_residual",
        "precision": "fp32",
        "normalize_waveform": False,
        "deduplicated": True,
    }
    return Tokenizer(**{**about, **changes})


def test_a_suite_is_its_kind_and_its_folder(tmp_path: Path) -> None:
    assert suite_named(f"tsc={tmp_path}") == ("tsc", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("swuggy", "give the suite and its folder, such as swuggy="),
        ("swuggy=", "give the suite and its folder"),
        ("words=/tmp", "the suites are swuggy, sblimp, "),
        ("tsc=/no/such/folder", "/no/such/folder is no folder; check the path"),
    ],
)
def test_what_is_no_suite_is_refused(text: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        suite_named(text)


def test_the_model_of_a_run_is_where_its_store_has_it(tmp_path: Path) -> None:
    ledger = trained(tmp_path)
    model = model_of_run(ledger.run, ledger.store, WARM)
    tokenizer = model.tokenizer
    train = next(i for i in ledger.of_stage("train") if i.variants == (WARM,))
    assert model.model_url == f"{ledger.artifact(train).storage.url}/model"
    assert (model.context_length, model.name) == (32, f"{ledger.run.name}, {WARM}")
    (encoder,), (codebook,) = ledger.of_stage("encoder"), ledger.of_stage("codebook")
    assert tokenizer.encoder_url == ledger.artifact(encoder).storage.url
    assert tokenizer.codebook_url == ledger.artifact(codebook).storage.url
    assert (tokenizer.num_units, tokenizer.layer, tokenizer.deduplicated) == (100, 3, True)


def test_one_of_several_variants_is_named(tmp_path: Path) -> None:
    ledger = trained(tmp_path)
    with pytest.raises(RequestError, match=r"name one by --variant: init=twist, init=cold"):
        model_of_run(ledger.run, ledger.store, None)
    with pytest.raises(RequestError, match=r"--variant: x: no such variant; the run has init"):
        tokenizer_of_run(ledger.run, ledger.store, "x")


def test_variants_that_share_their_units_have_one_tokenizer(tmp_path: Path) -> None:
    ledger = trained(tmp_path)
    shared = tokenizer_of_run(ledger.run, ledger.store, None)
    assert shared == tokenizer_of_run(ledger.run, ledger.store, WARM)


def test_variants_of_other_units_must_be_named(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path, recipe_of({"tokenizer.num_clusters": [50, 100]}))
    with pytest.raises(RequestError, match="has several variants; name one by --variant"):
        tokenizer_of_run(ledger.run, ledger.store, None)


def test_what_is_not_finished_is_not_scored(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path, recipe_of({}))
    with pytest.raises(RequestError, match=r"encoder-.*: not finished; `orchestrator status"):
        model_of_run(ledger.run, ledger.store, None)
    ledger.finish_data()
    with pytest.raises(RequestError, match=r"train-.*: not finished"):
        model_of_run(ledger.run, ledger.store, None)
    assert tokenizer_of_run(ledger.run, ledger.store, None).num_units == 100
    with pytest.raises(RequestError, match=r"--step: train-.* has no checkpoint .* none yet"):
        checkpoint_of_run(ledger.run, ledger.store, None, 10)


def test_a_checkpoint_is_scored_while_its_training_goes_on(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path, recipe_of({}))
    ledger.finish_data()
    (train,) = ledger.of_stage("train")
    storage = ledger.artifact(train).storage
    about = {"lease_n": 2, "world_size": 1, "zero_stage": 0, "cursor": 0, "sample_hash": ""}
    for step in (10, 20):
        checkpoints.commit(storage, Manifest(step=step, **about, files={}, metrics=()))
    model = checkpoint_of_run(ledger.run, ledger.store, None, 10)
    assert (model.name, model.context_length) == (f"{ledger.run.name}, base, step 10", 32)
    assert model.model_url == storage.url
    assert model.checkpoint
    assert (model.checkpoint.name, model.checkpoint.text_model) == ("step-00000010-a0002", "lm")
    spread = {**about, "zero_stage": 3}
    checkpoints.commit(storage, Manifest(step=30, **spread, files={}, metrics=()))
    with pytest.raises(RequestError, match=r"--step: train-.*: ZeRO 3 has spread the weights"):
        checkpoint_of_run(ledger.run, ledger.store, None, 30)
    with pytest.raises(RequestError, match="no checkpoint of step 15; there are 10, 20, 30"):
        checkpoint_of_run(ledger.run, ledger.store, None, 15)


def exported(tmp_path: Path) -> Path:
    ledger = trained(tmp_path)
    ((folder, _),) = export_models(ledger.run, ledger.store, ledger.observed, tmp_path / "o", WARM)
    return folder


def test_an_exported_model_says_what_makes_its_units(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    assert is_model_folder(str(folder))
    assert not is_model_folder(str(tmp_path))
    here = cluster(str(tmp_path / "store"), models={"hubert": "/models/hubert"})
    tokenizer = tokenizer_of_export(folder, here)
    assert tokenizer.published == {
        "model": "/models/hubert",
        "revision": None,
        "sha256": "a" * 64,
        "frame_rate_hz": 50.0,
    }
    assert tokenizer.codebook_url == str(folder)
    assert tokenizer.normalize_waveform
    assert json.loads((folder / "units.json").read_text())["context_length"] == 32


@pytest.mark.parametrize("here", [None, Cluster(backend="fake", store="/s")])
def test_an_encoder_that_is_not_known_here_is_asked_for(
    tmp_path: Path, here: Cluster | None
) -> None:
    with pytest.raises(RequestError, match=r"its encoder hubert is a folder .* give by --cluster"):
        tokenizer_of_export(exported(tmp_path), here)


def test_an_encoder_that_was_trained_with_it_is_beside_it(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    about = json.loads((folder / "units.json").read_text())
    (folder / "units.json").write_text(json.dumps({**about, "encoder": {"folder": "encoder"}}))
    tokenizer = tokenizer_of_export(folder, None)
    assert (tokenizer.encoder_url, tokenizer.published) == (str(folder / "encoder"), {})


def test_a_folder_that_says_nothing_of_units_needs_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"has no units\.json .* name by --tokenizer"):
        tokenizer_of_export(tmp_path, None)
    (tmp_path / "units.json").write_text("{}")
    with pytest.raises(RequestError, match=r"units\.json: is not what `orchestrator export`"):
        tokenizer_of_export(tmp_path, None)


def scoring_of(folder: Path) -> Scoring:
    return Scoring(
        models=(model_in_folder(folder, tokenizer_in(folder)),),
        suites=(("swuggy", str(folder)),),
        bootstrap_samples=100,
        seed=0,
    )


def test_what_is_wrong_is_said_by_whoever_scores(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"swuggy: .* holds no lexical/dev"):
        score(scoring_of(tmp_path), None)


def test_scoring_that_is_killed_is_a_failure(tmp_path: Path) -> None:
    killed = cluster(str(tmp_path / "store"), environment={"setup": ["kill -9 $$"]})
    with pytest.raises(RunFailedError, match="code -9 and without a word"):
        score(scoring_of(tmp_path), killed)


def test_another_environment_imports_this_package_and_nothing_else_of_ours(tmp_path: Path) -> None:
    venv, seen = tmp_path / "venv", tmp_path / "seen"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin/python"
    python.write_text(f'#!/bin/sh\nls "$PYTHONPATH" > {seen}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    here = cluster(str(tmp_path / "store"), environment={"venv": str(venv)})
    with pytest.raises(RequestError, match="holds no lexical/dev"):
        score(scoring_of(tmp_path), here)
    assert seen.read_text().split() == ["jobs", "orchestrator"]
