"""The device: its name, what it could do at best, and how long work on it takes."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers

from benchmarks.gpu.figures import Setting
from jobs.training.mfu import PEAK_FLOPS

FP32_FLOPS = {
    "Tesla V100-SXM2-16GB": 15.7e12,
    "Tesla V100-SXM2-32GB": 15.7e12,
    "Tesla T4": 8.1e12,
    "NVIDIA A100-SXM4-40GB": 19.5e12,
    "NVIDIA A100-SXM4-80GB": 19.5e12,
    "NVIDIA A100-PCIE-40GB": 19.5e12,
    "NVIDIA A100 80GB PCIe": 19.5e12,
    "NVIDIA A40": 37.4e12,
    "NVIDIA L4": 30.3e12,
    "NVIDIA L40S": 91.6e12,
    "NVIDIA H100 80GB HBM3": 67e12,
    "NVIDIA H100 PCIe": 51e12,
    "NVIDIA H200": 67e12,
    "NVIDIA GH200 480GB": 67e12,
}
"""FLOPs a second of fp32 without tensor cores, by ``torch.cuda.get_device_name``: the makers' data
sheets. `jobs.training.mfu` has those of 16 bits."""
_DATA_SHEET = "data sheet"


class Peak(NamedTuple):
    """FLOPs a second at best."""

    flops_per_s: float
    name: str
    """How it is known."""


def about(setting: Setting) -> dict[str, str]:
    """Names and versions, blank where they are not known."""
    is_cuda = setting.device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if is_cuda else "cpu",
        "driver": _driver() if is_cuda else "",
        "cuda": (torch.version.cuda or "") if is_cuda else "",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.split("\n")[0].strip()


def peak(setting: Setting, dtype: torch.dtype) -> Peak:
    """Of products of a type: by the data sheet, or else measured on large ones."""
    sheets = FP32_FLOPS if dtype == torch.float32 else PEAK_FLOPS
    name = torch.cuda.get_device_name() if setting.device == "cuda" else ""
    if name in sheets:
        return Peak(sheets[name], f"{_DATA_SHEET}, {_short(dtype)}")
    return Peak(_matmul_rate(setting, dtype), f"measured products, {_short(dtype)}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _matmul_rate(setting: Setting, dtype: torch.dtype) -> float:
    side = setting.sized(8192, 256)
    first, second = torch.randn(2, side, side, device=setting.torch_device).to(dtype)
    return 2.0 * side**3 / seconds_of(setting, lambda: first @ second)


def memory_rate(setting: Setting) -> float:
    """Bytes a second that a copy on the device reads and writes."""
    data = torch.zeros(setting.sized(1 << 30, 1 << 20), dtype=torch.uint8, device=setting.device)
    into = torch.empty_like(data)
    return 2.0 * len(data) / seconds_of(setting, lambda: into.copy_(data))


def seconds_of(setting: Setting, work: Callable[[], Any], *, repeats: int = 5) -> float:
    """The median of some runs, each until the device has nothing left to do."""
    took = []
    for _ in range(setting.sized(repeats, 1) + 1):  # the first warms up
        started = time.perf_counter()
        work()
        if setting.device == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - started)
    return statistics.median(took[1:])
