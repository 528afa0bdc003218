"""What the rows of ``benchmarks.gpu`` are told, and the table; tests/gpu runs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu.figures import Figure, Setting, as_json, table


def test_waves_come_from_the_file_until_they_are_long_enough(tmp_path: Path) -> None:
    path = tmp_path / "waves.npz"
    np.savez(path, b=np.full(16_000, 2), a=np.full(48_000, 1.0))
    setting = Setting(device="cpu", is_tiny=True, audio=str(path))
    waves = setting.waves(7.5, longest_s=2.0)
    assert [(len(wave), float(wave[0])) for wave in waves] == [
        (32_000, 1.0),
        (16_000, 2.0),
        (32_000, 1.0),
        (16_000, 2.0),
        (24_000, 1.0),
    ]
    assert {wave.dtype for wave in waves} == {np.dtype(np.float32)}


def test_waves_that_are_made_up_are_the_same_each_time() -> None:
    setting = Setting(device="cpu", is_tiny=True)
    first, again = (setting.waves(3.0, longest_s=1.0) for _ in range(2))
    assert sum(map(len, first)) == 48_000
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))


def test_a_file_without_samples_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "none.npz", a=np.zeros(0))
    setting = Setting(device="cpu", is_tiny=True, audio=str(tmp_path / "none.npz"))
    with pytest.raises(ValueError, match=r"none\.npz: holds no samples; give arrays of float32"):
        setting.waves(1.0, longest_s=1.0)


def test_what_was_not_measured_is_blank() -> None:
    figures = [
        Figure(row="encoder", case="fp32", value=12345.6, unit="audio s/s", share=0.5, peak="x"),
        Figure(row="encoder", case="fp32, graphs", value=None, unit="audio s/s"),
    ]
    assert table(figures).splitlines() == [
        "row      case           value  unit       share  of  note",
        "encoder  fp32          12,346  audio s/s  50.0%  x",
        "encoder  fp32, graphs          audio s/s",
    ]
    assert [figure["value"] for figure in as_json(figures)] == [12345.6, None]
