from __future__ import annotations

import random
from pathlib import Path

import pytest

from jobs.scoring.suites import open_suite
from jobs.scoring.suites.scores import score_suite
from orchestrator.errors import DataError, RequestError
from tests.unit.jobs.scoring.suites.material import (
    SYNTACTIC,
    TYPES,
    log_probs_of,
    syntactic_rows,
    write_gold,
    write_part,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_part(tmp_path / "syntactic/dev", SYNTACTIC, syntactic_rows())
    return tmp_path


def values(folder: Path) -> dict[str, float]:
    suite = open_suite("sblimp", folder)
    document = score_suite(suite, log_probs_of(suite.files), bootstrap_samples=100, seed=0)
    return {f["name"]: f["value"] for f in document["splits"]["dev"]["figures"]}


def test_micro_and_macro_are_named_and_differ(folder: Path) -> None:
    found = values(folder)
    of_types = [found[f"type {kind}"] for kind in TYPES]
    sizes = list(TYPES.values())
    micro = sum(v * n for v, n in zip(of_types, sizes, strict=True)) / sum(sizes)
    assert found["by pair"] == pytest.approx(micro)
    assert found["by type"] == pytest.approx(sum(of_types) / len(of_types))
    assert abs(found["by pair"] - found["by type"]) > 0.01


def test_ids_of_other_subtypes_are_other_pairs(folder: Path) -> None:
    assert len(open_suite("sblimp", folder).items("dev")) == sum(TYPES.values())


def test_pairs_do_not_hang_on_the_order_of_rows(folder: Path) -> None:
    before, rows = values(folder), syntactic_rows()
    random.Random(2).shuffle(rows)
    write_gold(folder / "syntactic/dev/gold.csv", SYNTACTIC, rows)
    assert values(folder) == before


def test_a_sentence_left_alone_is_named(folder: Path) -> None:
    rows = syntactic_rows()
    rows[4] |= {"correct": "0"}
    write_gold(folder / "syntactic/dev/gold.csv", SYNTACTIC, rows)
    with pytest.raises(DataError, match=r"^syntactic/dev/gold.csv: row \d+: 0 correct and 2 incor"):
        open_suite("sblimp", folder)


def test_a_folder_without_it_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"holds no syntactic/dev.*zerospeech\.com"):
        open_suite("sblimp", tmp_path)
