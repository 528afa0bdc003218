"""What Ray Train's failures say; a real Ray session is in tests/integration."""

from __future__ import annotations

from types import SimpleNamespace

from jobs.training.ray_train import failed_ranks


def test_each_failed_rank_is_named_by_the_end_of_what_it_raised() -> None:
    error = SimpleNamespace(worker_failures={3: "Traceback\nOSError: disk", 1: "ValueError: x"})
    assert failed_ranks(error) == "rank 1: ValueError: x; rank 3: OSError: disk"


def test_else_the_error_speaks_for_itself() -> None:
    assert failed_ranks(RuntimeError("first\nthe head is gone")) == "the head is gone"
