"""From units to a document: what is scored, by which measure, and what stands beside it."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.scoring.likelihood import Likelihood
from jobs.scoring.scored_suite import MEASURE, SuiteTokens, document, headlines, table_of
from jobs.scoring.suites import KINDS, open_suite
from jobs.scoring.suites.suite import Suite
from jobs.scoring.unit_model import Vocabulary
from jobs.speech.whole_files import Spoken
from orchestrator.errors import DataError
from orchestrator.spec.recipe import SuiteKind
from tests.tiny_suite import make_tiny_suite

HOW = {"bootstrap_samples": 100, "seed": 0}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    root = tmp_path_factory.mktemp("suite")
    make_tiny_suite(root)
    return open_suite("swuggy", root)


def likelihoods(suite: Suite) -> dict[str, Likelihood]:
    """Positives are likelier a token and less likely in all, since they are longer."""
    good = {pair.positive for pair in suite.pairs}
    return {
        name: Likelihood(-40.0, 40, 32_000) if name in good else Likelihood(-20.0, 10, 8_000)
        for name in suite.files
    }


def test_the_score_is_by_token_and_the_other_measures_stand_beside_it(suite: Suite) -> None:
    found = document(suite, likelihoods(suite), Vocabulary(context_length=64), **HOW)
    assert found["measure"] == MEASURE
    assert "windows of 64 tokens" in found["likelihood_rule"]
    assert found["num_scored_tokens"] == 8 * 40 + 8 * 10
    assert found["nats_per_token"] == pytest.approx((8 * 40 + 8 * 20) / (8 * 50))
    assert found["nats_per_s"] == pytest.approx((8 * 40 + 8 * 20) / (8 * 2.5))
    row = headlines(found)["dev"]["all"]
    assert (row["value"], row["chance"], row["num_pairs"]) == (1.0, 0.5, 4)
    others = found["other_measures"]
    assert others["sum"]["dev"]["all"]["value"] == 0.0
    assert others["per_s"]["dev"]["all"]["value"] == 1.0


def test_recipes_know_every_suite() -> None:
    assert get_args(SuiteKind) == KINDS


def test_what_papers_quote_is_no_table(suite: Suite) -> None:
    found = document(suite, likelihoods(suite), Vocabulary(), **HOW)
    tables = {row["table"] for row in found["splits"]["dev"]["figures"]}
    assert "frequency" in tables
    assert set(headlines(found)["dev"]) == {"all", "in vocabulary"}


def test_tokens_are_what_the_vocabulary_makes_of_units() -> None:
    spoken = [Spoken("a", np.array([1, 2, 1], np.uint16), 960)]
    tokens = SuiteTokens(spoken, Vocabulary(offset=3, bos=0))
    assert [s.tolist() for s in tokens.sequences] == [[0, 4, 5, 4]]
    (batch,) = tokens.batches
    found = tokens.likelihoods({0: [-6.0] * len(batch)})
    assert found == {"a": Likelihood(-6.0, 3, 960)}


def test_an_utterance_of_which_nothing_is_scored_is_named() -> None:
    spoken = [Spoken("dev/quiet", np.array([5], np.uint16), 640)]
    assert SuiteTokens(spoken, Vocabulary(bos=9)).batches
    with pytest.raises(DataError, match="dev/quiet: nothing of it can be scored: it has 1 token"):
        SuiteTokens(spoken, Vocabulary())


def test_log_probabilities_are_kept(suite: Suite, tmp_path: Path) -> None:
    table = pq.read_table(io.BytesIO(table_of(likelihoods(suite))))
    assert table["id"].to_pylist() == list(suite.files)
    assert table.column_names == ["id", "log_prob", "num_scored", "num_samples"]
    assert math.isclose(sum(table["log_prob"].to_pylist()), -8 * 60)
