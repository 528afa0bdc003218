"""How quantities are shown, and what errors end in."""

from __future__ import annotations

import pytest

from orchestrator import errors
from orchestrator.quantities import format_bytes, format_count, format_duration, format_several


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999_960, "1.0 MB"),
        (1000, "1.0 kB"),
        (21e9, "21.0 GB"),
        (83e12, "83.0 TB"),
        (1.5e15, "1.5 PB"),
    ],
)
def test_bytes(num_bytes: float, text: str) -> None:
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.21, "4.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (60, "1 min 0 s"),
        (725, "12 min 5 s"),
        (3600, "1 h 0 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (512, "512"),
        (999_960, "1.0 M"),
        (1536, "1.5 k"),
        (134.5e6, "134.5 M"),
        (10.5e9, "10.5 G"),
        (3.6e13, "36.0 T"),
    ],
)
def test_counts(count: float, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (errors.OrchestratorError, 1),
        (errors.RequestError, 2),
        (errors.RunFailedError, 1),
        (errors.BackendError, 3),
        (errors.LedgerError, 1),
        (errors.CorruptError, 1),
        (errors.AlreadyExistsError, 1),
        (errors.LeaseHeldError, 1),
    ],
)
def test_exit_codes(error: type[errors.OrchestratorError], exit_code: int) -> None:
    assert error("x").exit_code == exit_code


def test_several_problems_are_as_many_lines() -> None:
    error = errors.SpecErrors(["a: b", "c: d"])
    assert str(error) == "a: b\nc: d"
    assert error.problems == ("a: b", "c: d")
    assert error.exit_code == 2


def test_one_of_a_thing_is_not_several() -> None:
    assert [format_several(n, "CPU") for n in (0, 1, 16)] == ["0 CPUs", "1 CPU", "16 CPUs"]
