"""Frames that are asked for again and again, in memory while there is much of it, else on disk.

Out: the same ``feats_ND``. Those on disk are a file without a name that is mapped: the system reads
what is asked for and forgets it when others need the memory, so that there may be more frames than
memory.

Shapes: N frames, D features.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)

_LEFT_TO_OTHERS = 0.25
"""Of the memory, what frames leave free."""
_GROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


class HeldFrames:
    """Takes frames in, for as long as what it gives back is there."""

    def __init__(
        self, folder: str | None = None, *, has_room: Callable[[int], bool] | None = None
    ) -> None:
        """``folder``: on this node's disk, the system's temporary one by default.

        ``has_room``: whether the memory has room for so many bytes.
        """
        self._folder, self._has_room = folder, has_room or has_much_memory
        self._is_on_disk = False

    def __call__(self, feats_ND: Tensor) -> Tensor:
        """The frames. Raises OSError when neither memory nor disk has room."""
        size = feats_ND.numel() * feats_ND.element_size()
        if not size or (not self._is_on_disk and self._has_room(size)):
            return feats_ND
        if not self._is_on_disk:
            where = self._folder or tempfile.gettempdir()
            log.info("memory is short: frames are mapped from files in %s from now on", where)
            self._is_on_disk = True
        return mapped(feats_ND, self._folder)


def mapped(feats_ND: Tensor, folder: str | None) -> Tensor:
    """The frames in a file that only this process knows."""
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(prefix="frames-", dir=folder) as file:
        feats_ND.numpy().tofile(file)
        file.flush()
        # Shared, so that the system may forget its pages; nobody else has the file.
        frames = np.memmap(file, feats_ND.numpy().dtype, "r+", shape=tuple(feats_ND.shape))
    return torch.from_numpy(frames)


def has_much_memory(size: int, *, group: Path = _GROUP, meminfo: Path = _MEMINFO) -> bool:
    """Whether a quarter of this machine's memory, or of the container's, is free beside ``size``.

    Where no system says, there is.
    """
    sizes = [_of_group(group), _of_machine(meminfo)]
    return all(free - size >= _LEFT_TO_OTHERS * total for free, total in filter(None, sizes))


def _of_machine(meminfo: Path) -> tuple[int, int] | None:
    """What is free and what there is, in bytes."""
    if not meminfo.exists():
        return None
    kb = {name: int(n) for name, n in re.findall(r"(\w+):\s+(\d+) kB", meminfo.read_text())}
    return kb["MemAvailable"] * 1024, kb["MemTotal"] * 1024


def _of_group(group: Path) -> tuple[int, int] | None:
    """The same of a container (cgroup v2), which counts files that were read as used."""
    most = group / "memory.max"
    if not most.exists() or (said := most.read_text().strip()) == "max":
        return None
    used = int((group / "memory.current").read_text())
    files = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
    return int(said) - used + (int(files[1]) if files else 0), int(said)
