"""What the codebook stage says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.codebook import report_fit, report_iteration
from jobs.speech.lloyd import MAX_ITERATIONS, Fit
from tests.unit.jobs.test_attempt import attempt_in


def test_of_several_codebooks_the_one_in_question_is_named(tmp_path: Path) -> None:
    attempt = attempt_in(tmp_path)
    report_iteration(attempt, 3, inertia=2.0, of="100 clusters of layer 6 after_residual")
    assert attempt.record.progress["unit"] == (
        "iterations for 100 clusters of layer 6 after_residual"
    )


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
