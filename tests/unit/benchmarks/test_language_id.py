from __future__ import annotations

import pytest

from benchmarks.language_id import Heard, confusion, score
from jobs.audio.language_id import Identified

HEARD = [
    Heard("en", 3.0, Identified("en", 0.9, 0.9)),
    Heard("en", 3.0, Identified("en", 0.6, 0.6)),
    Heard("en", 3.0, Identified("cy", 0.7, 0.2)),
    Heard("fr", 3.0, Identified("en", 0.55, 0.55)),
    Heard("fr", 3.0, Identified("fr", 0.9, 0.01)),
]


@pytest.mark.parametrize(
    ("threshold", "expected"), [(0.1, (3 / 4, 1)), (0.5, (2 / 3, 2 / 3)), (0.8, (1, 1 / 3))]
)
def test_precision_and_recall_by_hand(threshold: float, expected: tuple[float, float]) -> None:
    assert score(HEARD, "en", threshold) == pytest.approx(expected)
    assert score([], "en", threshold) == (1.0, 1.0)


def test_confusion() -> None:
    assert confusion(HEARD).splitlines() == [
        "| spoken | en | cy | fr | other | recordings |",
        "|---|---|---|---|---|---|",
        "| en | 2 | 1 | 0 | 0 | 3 |",
        "| fr | 1 | 0 | 1 | 0 | 2 |",
    ]
