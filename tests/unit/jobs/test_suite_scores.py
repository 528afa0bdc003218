"""The worker that holds a model, and what is written of a suite's scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from jobs.scoring.likelihood import Likelihood, log_probs, pieces_of, plan_batches
from jobs.scoring.scored_suite import document, headlines
from jobs.scoring.suites import open_suite
from jobs.scoring.unit_model import Vocabulary
from jobs.suite_scores import (
    ScoreWorker,
    about_model,
    fetched,
    values_of,
    write_scores,
    write_submission,
)
from orchestrator.errors import DataError
from orchestrator.ledger.storage import Storage
from orchestrator.stratified import stratified_mean
from tests.tiny_suite import make_tiny_suite
from tests.unit.orchestrator.recipes import recipe


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=9,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.5,
    )
    folder = tmp_path_factory.mktemp("train") / "model"
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_worker_scores_as_the_model_does(model: Path) -> None:
    said = [np.arange(length) % 9 for length in (5, 12, 7)]
    (batch,) = plan_batches([len(one) for one in said], None)
    pieces = pieces_of(said, batch)
    whole = LlamaForCausalLM.from_pretrained(model).eval()
    assert ScoreWorker(str(model))(pieces) == pytest.approx(log_probs(whole, pieces), abs=1e-5)


def test_a_model_in_a_bucket_is_copied(model: Path, tmp_path: Path) -> None:
    store = Storage("memory://suite-scores/model")
    for path in model.iterdir():
        store.create(path.name, path.read_bytes())
    assert fetched(store, tmp_path) == tmp_path
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in model.iterdir()}
    assert fetched(Storage(str(model)), tmp_path) == model


def test_a_model_that_was_trained_to_nothing_is_bad_data(model: Path, tmp_path: Path) -> None:
    broken = LlamaForCausalLM.from_pretrained(model)
    with torch.no_grad():
        broken.lm_head.weight[3, 1] = torch.nan
    broken.save_pretrained(tmp_path / "model")
    with pytest.raises(DataError, match=r"train: .* holds NaN or infinity"):
        ScoreWorker(str(tmp_path / "model"))


def test_scores_and_official_tables_are_written(tmp_path: Path) -> None:
    make_tiny_suite(tmp_path / "suite")
    suite = open_suite("swuggy", tmp_path / "suite")
    likelihoods = {n: Likelihood(-float(k), 4, 8_000) for k, n in enumerate(suite.files)}
    scores = document(suite, likelihoods, Vocabulary(), bootstrap_samples=100, seed=0)
    write_scores(Storage(str(tmp_path / "out")), suite, likelihoods, scores)
    assert json.loads((tmp_path / "out/scores.json").read_text()) == scores
    assert (tmp_path / "out/log_probs.parquet").is_file()
    items = json.loads((tmp_path / "out/items.json").read_text())
    assert items["fingerprint"] == suite.fingerprint
    for row in scores["splits"]["dev"]["figures"]:
        if row["table"]:
            assert row["name"] not in items["splits"]["dev"]["figures"]
            continue
        split = items["splits"]["dev"]
        strata = split["figures"][row["name"]]
        assert stratified_mean(np.array(split["scores"]), strata) == row["value"]
    by_pair = (tmp_path / "out/tables/score_lexical_dev_by_pair.csv").read_text()
    assert by_pair.startswith("word,non word,score\nword0,wurd0,1.0000\n")
    write_submission(Storage(str(tmp_path / "out")), [(suite, likelihoods)], about_model(recipe()))
    submitted = tmp_path / "out/submission/sLM21"
    first, *_ = (submitted / "lexical/dev.txt").read_text().splitlines()
    assert first == "00 -0.0"
    assert (
        "small: tiny-lm, warm start, on 20 units of 50 Hz" in (submitted / "meta.yaml").read_text()
    )
    assert values_of(headlines(scores)) == {"dev": {"all": 1.0, "in vocabulary": 1.0}}
