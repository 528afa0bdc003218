from __future__ import annotations

import numpy as np
import pytest

from jobs.audio.windows import cut, is_silent
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Windows

WINDOWS = Windows(min_s=0.5, max_s=10.0)


@pytest.mark.parametrize(
    ("seconds", "count"), [(0.49, 0), (0.5, 1), (10.0, 1), (10.1, 2), (95.0, 10)]
)
def test_windows_are_bounded_equal_and_leave_nothing_out(seconds: float, count: int) -> None:
    num_samples = int(seconds * SAMPLE_RATE_HZ)
    spans = cut(num_samples, WINDOWS)
    assert len(spans) == count
    if spans:
        sizes = [s.num_samples for s in spans]
        assert sum(sizes) == num_samples
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= WINDOWS.max_s * SAMPLE_RATE_HZ
        assert [s.start_sample for s in spans] == [sum(sizes[:i]) for i in range(count)]


def test_silence_is_what_nobody_hears() -> None:
    noise = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    assert is_silent(0.0001 * noise)
    assert not is_silent(0.1 * noise)
    assert is_silent(np.zeros(0, np.float32))
