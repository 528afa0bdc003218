"""The device that a process computes on."""

from __future__ import annotations

import torch


def own_device() -> torch.device:
    """The accelerator that this process was given, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
