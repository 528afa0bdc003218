"""The order of what workers give."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.speech.feature_blocks import in_order


def test_results_are_put_in_order_as_early_as_possible() -> None:
    given = []

    def results() -> Iterator[tuple[int, str]]:
        for number in (2, 0, 1, 3):
            given.append(number)
            yield number, f"result {number}"

    ordered = in_order(results())
    assert next(ordered) == "result 0"
    assert given == [2, 0]
    assert list(ordered) == ["result 1", "result 2", "result 3"]
