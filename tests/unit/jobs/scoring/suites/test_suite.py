from __future__ import annotations

from pathlib import Path

import pytest

from jobs.scoring.suites import KINDS, open_suite
from jobs.scoring.suites.suite import Pair, Part, natural, suite_of
from orchestrator.errors import RequestError


def test_items_and_files_have_an_order_of_their_own() -> None:
    names = [f"dev/{n}" for n in "cba"]
    pairs = [Pair(item=i, positive=names[0], negative=names[1], split="dev") for i in ("10", "9")]
    part = Part(split="dev", files={name: (f"{name}.wav", 4) for name in names}, pairs=pairs)
    suite = suite_of("swuggy", "sWUGGY", [part])
    assert list(suite.files) == sorted(names)
    assert list(suite.items("dev")) == ["9", "10"]


def test_numbers_in_ids_are_sorted_by_value() -> None:
    assert sorted(["b/10", "b/9", "a/11", "b"], key=natural) == ["a/11", "b", "b/9", "b/10"]


def test_a_suite_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"no 'swugy'; use one of {', '.join(KINDS)}"):
        open_suite("swugy", tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_set_that_is_absent_takes_one_line(tmp_path: Path, kind: str) -> None:
    with pytest.raises(RequestError, match=rf"^{kind}: {tmp_path}: holds no .*; get it from ") as e:
        open_suite(kind, tmp_path)
    assert "\n" not in str(e.value)
