"""Which utterances a codebook is fitted on, and the order of what workers give."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.speech.feature_blocks import in_order, sample_rows

IDS = [f"utterance-{n}" for n in range(200)]
ONE_MINUTE = [60 * 16_000] * 200


def test_the_sample_has_the_hours_asked_for_in_manifest_order() -> None:
    rows = sample_rows(IDS, ONE_MINUTE, fit_hours=0.5, seed=0)
    assert len(rows) == 30
    assert rows == sorted(rows)
    assert rows != list(range(30))


def test_the_sample_grows_and_depends_on_the_seed() -> None:
    small = set(sample_rows(IDS, ONE_MINUTE, fit_hours=0.5, seed=0))
    assert small < set(sample_rows(IDS, ONE_MINUTE, fit_hours=1.0, seed=0))
    assert small != set(sample_rows(IDS, ONE_MINUTE, fit_hours=0.5, seed=1))
    assert sample_rows(IDS, ONE_MINUTE, fit_hours=99, seed=0) == list(range(200))


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
