from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from jobs.scoring.suites import open_suite
from jobs.scoring.suites.scores import NEAR, compare, score_suite
from jobs.scoring.suites.suite import Suite
from orchestrator.errors import DataError
from orchestrator.ledger.storage import to_json
from tests.unit.jobs.scoring.suites.material import (
    LEXICAL,
    lexical_rows,
    log_probs_of,
    write_part,
)


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    write_part(tmp_path / "lexical/dev", LEXICAL, lexical_rows(num_ids=60))
    return open_suite("swuggy", tmp_path)


def figures(document: dict, split: str = "dev") -> dict:
    return {f["name"]: f for f in document["splits"][split]["figures"]}


def level(suite: Suite, positive: float, negative: float) -> dict[str, float]:
    """The same log-probabilities for all positives, and for all negatives."""
    found = dict.fromkeys(suite.files, negative)
    return found | {pair.positive: positive for pair in suite.pairs}


@pytest.mark.parametrize(("positive", "score"), [(-1.0, 1.0), (-2.0, 0.5), (-3.0, 0.0)])
def test_a_tie_counts_half(suite: Suite, positive: float, score: float) -> None:
    document = score_suite(suite, level(suite, positive, -2.0), bootstrap_samples=100, seed=0)
    for figure in figures(document).values():
        assert figure["value"] == score
        assert figure["interval_95"] == [score, score]
        assert figure["chance"] == 0.5


def test_ties_and_near_ties_are_counted(suite: Suite) -> None:
    log_probs = level(suite, -1.0, -2.0)
    pairs = suite.pairs
    log_probs[pairs[0].negative] = -1.0
    log_probs[pairs[1].negative] = -1.0 + NEAR / 2
    log_probs[pairs[2].negative] = -1.0 - NEAR / 2
    log_probs[pairs[3].negative] = -1.0 - NEAR * 2
    found = score_suite(suite, log_probs, bootstrap_samples=100, seed=0)["splits"]["dev"]
    assert (found["num_ties"], found["num_near_ties"]) == (1, 2)
    assert found["num_voice_pairs"] == len(pairs)
    assert found["num_pairs"] == 60
    assert found["num_utterances"] == 2 * len(pairs)


def test_intervals_are_of_pairs_with_all_their_voices(suite: Suite) -> None:
    """As wide as the standard error of 60 means, not as that of all the voices' pairs."""
    log_probs = log_probs_of(suite.files, seed=3)
    document = score_suite(suite, log_probs, bootstrap_samples=20_000, seed=1)
    means = [
        np.mean(
            [
                (log_probs[p.positive] > log_probs[p.negative])
                + 0.5 * (log_probs[p.positive] == log_probs[p.negative])
                for p in pairs
            ]
        )
        for pairs in suite.items("dev").values()
    ]
    low, high = figures(document)["all"]["interval_95"]
    error = np.std(means) / math.sqrt(len(means))
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.05)


def test_a_single_pair_has_no_interval(tmp_path: Path) -> None:
    """One of no width would claim that its score is certain."""
    write_part(tmp_path / "lexical/dev", LEXICAL, lexical_rows(num_ids=1))
    suite = open_suite("swuggy", tmp_path)
    log_probs = level(suite, -1.0, -2.0)
    document = score_suite(suite, log_probs, bootstrap_samples=100, seed=0)
    assert figures(document)["all"]["interval_95"] is None
    worse = level(suite, -2.0, -1.0)
    compared = figures(compare(suite, log_probs, worse, bootstrap_samples=100, seed=0))["all"]
    assert (compared["difference"], compared["difference_95"]) == (1, None)
    assert not compared["excludes_zero"]


def test_the_same_seed_gives_the_same_document(suite: Suite) -> None:
    log_probs = log_probs_of(suite.files)
    one = score_suite(suite, log_probs, bootstrap_samples=200, seed=4)
    backwards = dict(reversed(log_probs.items()))
    assert to_json(score_suite(suite, backwards, bootstrap_samples=200, seed=4)) == to_json(one)
    assert score_suite(suite, log_probs, bootstrap_samples=200, seed=5) != one


def test_a_paired_comparison_sees_what_overlapping_intervals_hide(suite: Suite) -> None:
    """One model is the other with a few pairs turned right: better in each resampling."""
    worse = log_probs_of(suite.files, seed=6)
    better = dict(worse)
    lost = [p for p in suite.pairs if worse[p.positive] < worse[p.negative]]
    for pair in lost[:: len(lost) // 12]:
        better[pair.positive] = worse[pair.negative] + 1
    found = figures(compare(suite, better, worse, bootstrap_samples=2_000, seed=0))["all"]
    alone = [
        figures(score_suite(suite, m, bootstrap_samples=2_000, seed=0))["all"]["interval_95"]
        for m in (better, worse)
    ]
    assert alone[0][0] < alone[1][1]
    assert found["difference"] == pytest.approx(found["a"] - found["b"])
    assert found["difference_95"][0] > 0
    assert found["excludes_zero"]


def test_a_model_differs_from_itself_by_nothing(suite: Suite) -> None:
    log_probs = log_probs_of(suite.files)
    for figure in figures(
        compare(suite, log_probs, log_probs, bootstrap_samples=100, seed=0)
    ).values():
        assert (figure["difference"], figure["difference_95"]) == (0, [0, 0])
        assert not figure["excludes_zero"]


def test_an_utterance_without_a_score_is_named(suite: Suite) -> None:
    log_probs = log_probs_of(suite.files)
    del log_probs["dev/w7A"]
    with pytest.raises(DataError, match="1 utterances have none, dev/w7A first"):
        score_suite(suite, log_probs, bootstrap_samples=100, seed=0)


def test_a_score_of_no_utterance_is_named(suite: Suite) -> None:
    log_probs = log_probs_of(suite.files) | {"dev/foreign": -1.0}
    with pytest.raises(DataError, match="of no utterance of the suite, dev/foreign first"):
        score_suite(suite, log_probs, bootstrap_samples=100, seed=0)


@pytest.mark.parametrize("odd", [math.nan, -math.inf])
def test_a_score_that_is_no_number_is_named(suite: Suite, odd: float) -> None:
    log_probs = log_probs_of(suite.files) | {"dev/w7A": odd}
    with pytest.raises(DataError, match="no finite numbers, dev/w7A first"):
        score_suite(suite, log_probs, bootstrap_samples=100, seed=0)
