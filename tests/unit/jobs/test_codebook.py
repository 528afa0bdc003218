"""What the codebook stage says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.codebook import report_fit, report_iteration
from jobs.speech.lloyd import MAX_ITERATIONS, Fit
from tests.unit.jobs.test_attempt import attempt_in


@pytest.mark.parametrize("iterations", [1, 22, MAX_ITERATIONS])
def test_a_finished_fit_is_whole(tmp_path: Path, iterations: int) -> None:
    attempt = attempt_in(tmp_path)
    for number in range(1, iterations + 1):
        report_iteration(attempt, number, inertia=2.0)
    assert attempt.record.progress["total"] == MAX_ITERATIONS
    report_fit(
        attempt, Fit(centroids=torch.zeros(1, 1), inertia=2.0, iterations=iterations, num_frames=1)
    )
    progress = attempt.record.progress
    assert (progress["done"], progress["total"], progress["unit"]) == (
        iterations, iterations, "iterations",
    )  # fmt: skip
