"""A slice of the matrix in points.py; `make drill` runs all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.points import EVERY, STEPS, Case, cases, strike
from tests.training import Training, make_inputs

pytestmark = pytest.mark.slow

SLICE = [
    Case(point="save.written", rank=1, victim="rank"),
    Case(point="publish.file", rank=0, victim="rank"),
    Case(point="commit.metrics", rank=0, victim="driver"),
    Case(point="commit.manifest", rank=0, victim="rank"),
    Case(point="retire.file", rank=0, victim="rank"),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("calm")
    calm = Training(inputs=inputs, root=root, steps=STEPS, every_steps=EVERY, zero_stage=1)
    assert calm.run() == [0, 0]
    return calm.results()


@pytest.mark.parametrize("case", SLICE, ids=str)
def test_the_next_start_needs_nobody(
    case: Case, inputs: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    assert strike(case, inputs, tmp_path / "t", whole) <= EVERY


def test_the_matrix_has_every_point() -> None:
    assert len({case.point for case in cases()}) >= 12
    assert set(SLICE) <= set(cases())
