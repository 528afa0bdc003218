from __future__ import annotations

import pytest

from jobs.training.mfu import PEAK_FLOPS


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),  # not the L4 that its name begins with
        ("NVIDIA L40S", 362e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("cpu", None),
    ],
)
def test_a_device_is_known_by_its_exact_name(name: str, peak: float | None) -> None:
    assert PEAK_FLOPS.get(name) == peak
