from __future__ import annotations

import pytest

from jobs.train import mtbf_s
from orchestrator.spec.cluster import Resources, Retry


def test_the_configured_time_between_failures_comes_first() -> None:
    assert mtbf_s(Retry(mtbf_h=2.0), Resources(), 5, 100.0) == 7200.0


def test_the_observed_one_follows() -> None:
    assert mtbf_s(Retry(), Resources(), 5, 1000.0) == 200.0
    assert mtbf_s(Retry(), Resources(), 2, 1000.0) > 1e6  # two say little


def test_else_it_is_what_is_usual_for_so_many_devices() -> None:
    asked = Resources(nodes=4, gpus_per_node=8)
    assert mtbf_s(Retry(), asked, 0, 0.0) == pytest.approx(45_600 * 3600 / 32)
