"""Paired differences: against a loop written out, and what cannot be compared."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.errors import CorruptError
from orchestrator.ledger.storage import Storage
from orchestrator.report.paired import (
    Difference,
    PairedScores,
    Utterances,
    difference,
    have_same_tokens,
    read_utterances,
)
from orchestrator.report.record import read_record
from tests.unit.orchestrator.report.conftest import Ledger, nll_table

NewLedger = Callable[..., Ledger]


def utterances(
    nll: list[float], ids: list[str] | None = None, tokens: list[int] | None = None
) -> Utterances:
    names = ids or [f"u{n}" for n in range(len(nll))]
    return Utterances(
        ids=tuple(names),
        nll=np.array(nll),
        num_scored=np.array(tokens or [10] * len(nll)),
        num_samples=np.full(len(nll), 16_000),
    )


def found(first: list[Utterances], second: list[Utterances], **how: bool) -> Difference:
    result = difference(first, second, **{"same_tokens": True, **how})
    assert result
    return result


def test_the_value_is_the_difference_of_all_tokens() -> None:
    result = found([utterances([10.0, 30.0])], [utterances([20.0, 24.0])])
    assert result.value == pytest.approx((40 - 44) / 20)
    assert result.perplexity_ratio == pytest.approx(math.exp(-0.2))
    assert result.measure == "nats per token"
    assert not result.excludes_zero  # better on one, worse on the other


def test_the_interval_is_that_of_a_bootstrap_written_out() -> None:
    rng = np.random.default_rng(7)
    size = 200
    tokens = rng.integers(5, 50, size)
    ours = tokens * rng.normal(2.6, 0.4, size)
    theirs = ours + tokens * rng.normal(0.05, 0.1, size)
    drawn = [rng.integers(0, size, size) for _ in range(4000)]
    loop = [(ours[d] - theirs[d]).sum() / tokens[d].sum() for d in drawn]
    one, other = (utterances(x.tolist(), tokens=tokens.tolist()) for x in (ours, theirs))
    result = found([one], [other])
    assert result.interval_95 == pytest.approx(np.percentile(loop, [2.5, 97.5]), abs=0.002)
    assert result.excludes_zero
    # Each model's own interval is many times as wide: they overlap by far.
    alone = np.percentile([ours[d].sum() / tokens[d].sum() for d in drawn], [2.5, 97.5])
    assert alone[1] - alone[0] > 3 * (result.interval_95[1] - result.interval_95[0])


def test_utterances_are_matched_by_id_in_any_order() -> None:
    one = utterances([1.0, 2.0, 3.0], ids=["a", "b", "c"])
    other = utterances([3.0, 2.0, 9.0], ids=["c", "b", "z"])
    result = found([one], [other])
    assert (result.value, result.num_utterances, result.num_left_out) == (0.0, 2, 2)
    assert difference([one], [utterances([1.0], ids=["a"])], same_tokens=True) is None
    assert difference([one], [utterances([1.0], ids=["q"])], same_tokens=True) is None


def test_other_units_are_compared_per_second_of_audio() -> None:
    one, other = utterances([10.0, 12.0]), utterances([4.0, 6.0], tokens=[3, 4])
    assert not have_same_tokens(one, other)
    result = found([one], [other], same_tokens=False)
    assert result.value == pytest.approx(6.0)  # 12 nats over 2 s
    assert result.perplexity_ratio is None
    assert result.text == "+6.000 [+6.000, +6.000] nats per second of audio"


def test_seeds_that_disagree_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(25, 1, 100)
    cold = [utterances((base + 1).tolist()) for _ in range(3)]
    alike = [utterances(base.tolist()) for _ in range(3)]
    apart = [utterances((base + shift).tolist()) for shift in (-2.0, 0.0, 2.0)]
    assert found(alike, cold).excludes_zero
    assert not found(apart, cold).excludes_zero
    assert found(apart, cold).value == pytest.approx(found(alike, cold).value)


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_of_intervals_over_few_seeds_95_in_100_hold_what_is_true(num_seeds: int) -> None:
    """The difference of both models is 0; seeds and utterances move it as far as each other."""
    rng = np.random.default_rng(5)
    num_trials, num_utterances, held = 120, 30, 0
    for _ in range(num_trials):
        base = rng.normal(25, 3, num_utterances)
        sides = [
            [utterances((own + shift).tolist()) for shift in rng.normal(0, 0.7, num_seeds)]
            for own in (base, base + rng.normal(0, 1, num_utterances))
        ]
        held += not found(*sides).excludes_zero
    assert held / num_trials >= 0.93


def test_a_single_seed_is_taken_to_vary_as_those_of_the_other_side_do() -> None:
    base = [25.0, 24.0, 26.0]
    apart = [utterances([nll + shift for nll in base]) for shift in (-2.0, 0.0, 2.0)]
    result = found(apart, [utterances(base)])
    half = 4.303 * math.sqrt(0.2**2 / 3 + 0.2**2)  # t of 2 degrees of freedom, 97.5 %
    assert result.interval_95 == pytest.approx((-half, half))


def test_of_utterances_of_which_nothing_is_scored_nothing_is_said() -> None:
    one = utterances([0.0, 0.0], tokens=[0, 0])
    assert difference([one], [one], same_tokens=True) is None


def test_the_same_files_give_the_same_interval() -> None:
    one, other = utterances([1.0, 2.0, 5.0]), utterances([2.0, 2.5, 3.0])
    assert found([one], [other]) == found([one], [other])


def test_the_stage_s_file_is_read(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.create("test.nll.parquet", nll_table([1.5, 2.5], num_scored=10))
    read = read_utterances(storage, "test")
    assert read.ids == ("utt-0", "utt-1")
    assert read.nll.tolist() == [1.5, 2.5]
    storage.replace("test.nll.parquet", b"garbage")
    with pytest.raises(CorruptError, match=r"test\.nll\.parquet: .*; score the model again"):
        read_utterances(storage, "test")


def test_a_variant_without_them_says_why(finished: Ledger) -> None:
    record = read_record(finished.run, finished.store, finished.observed)
    scores, (first, second) = PairedScores(), record.variants
    assert scores.of(first) is None
    storage = finished.artifact(finished.of_stage("perplexity")[1]).storage
    storage.create("test.nll.parquet", b"PAR1")
    assert scores.of(second) is None
    assert scores.problem_of(first) == "the scores have no NLL by utterance"
    assert scores.problem_of(second).startswith("NLL by utterance cannot be read (")


def test_a_file_that_cannot_be_opened_is_a_line(finished: Ledger) -> None:
    """A folder in its place is an OSError that is no FileNotFoundError."""
    storage = finished.artifact(finished.of_stage("perplexity")[0]).storage
    storage.create("test.nll.parquet/part-0", b"")
    (first, _) = read_record(finished.run, finished.store, finished.observed).variants
    assert PairedScores().problem_of(first).startswith("NLL by utterance cannot be read (")


def test_no_damage_of_the_file_does_more_than_hide_its_scores(tmp_path: Path) -> None:
    """Many a byte in turn is another one, and the file is cut off before it."""
    storage = Storage(str(tmp_path))
    whole = nll_table([1.5, 2.5, 3.5], num_scored=10)
    num_refused, places = 0, range(0, len(whole), 7)
    for n in places:
        for damaged in (whole[:n], whole[:n] + bytes([whole[n] ^ 0xFF]) + whole[n + 1 :]):
            storage.replace("test.nll.parquet", damaged)
            try:
                read = read_utterances(storage, "test")
            except CorruptError:
                num_refused += 1
            else:
                with np.errstate(all="ignore"):  # a value may be any float64
                    difference([read], [read], same_tokens=True)
    assert num_refused > 1.5 * len(places)


def table_of(**columns: list[Any]) -> bytes:
    whole = {"id": ["a"], "nll": [1.0], "num_scored": [1], "num_samples": [1]} | columns
    buffer = io.BytesIO()
    pq.write_table(pa.table(whole), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        ({"nll": [None]}, "nll: 1 rows have none"),
        ({"nll": ["high"]}, "Cannot cast"),
        ({"num_scored": [1.5]}, "Cannot cast"),
        ({"num_samples": [-1]}, "counts below 0"),
    ],
)
def test_a_column_of_anything_else_is_corrupt(
    tmp_path: Path, column: dict[str, list[Any]], problem: str
) -> None:
    storage = Storage(str(tmp_path))
    storage.create("test.nll.parquet", table_of(**column))
    with pytest.raises(CorruptError, match=problem):
        read_utterances(storage, "test")


def test_a_variant_that_was_not_scored_has_none(new_ledger: NewLedger) -> None:
    ledger = new_ledger()
    record = read_record(ledger.run, ledger.store, ledger.observed)
    assert PairedScores().of(record.variants[0]) is None
