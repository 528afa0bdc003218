"""Frames that are asked for again and again, in memory while there is much of it, else on disk.

Out: the same ``feats_ND``. Those on disk are a file without a name that is mapped: the system reads
what is asked for and forgets it when others need the memory, so that there may be more frames than
memory.

Shapes: N frames, D features.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)

_LEFT_TO_OTHERS = 0.25
"""Of the memory, what frames leave free."""
_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
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
        _write(file, feats_ND)
        # Shared, so that the system may forget its pages; nobody else has the file.
        frames = np.memmap(file, feats_ND.numpy().dtype, "r+", shape=tuple(feats_ND.shape))
    return torch.from_numpy(frames)


def _write(file: IO[bytes], feats_ND: Tensor) -> None:
    """Write the frames, all of them: numpy's writer hides what a disk refuses at the close.

    Raises OSError.
    """
    data = feats_ND.contiguous().numpy().data.cast("B")
    file.write(data)
    file.flush()
    if os.fstat(file.fileno()).st_size != data.nbytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def has_much_memory(
    size: int, *, meminfo: Path = _MEMINFO, own_groups: Path = _OWN_GROUPS, groups: Path = _GROUPS
) -> bool:
    """Whether a quarter is free beside ``size`` of this machine's memory, and of each group's.

    Those are the process' own control group and all around it. Where no system says, there is.
    ``own_groups`` says which it is in, ``groups`` is where all of them are mounted.
    """
    sizes = [*_of_machine(meminfo), *_of_groups(own_groups, groups)]
    return all(free - size >= _LEFT_TO_OTHERS * total for free, total in sizes)


def _of_machine(meminfo: Path) -> Iterator[tuple[int, int]]:
    """What is free and what there is, in bytes."""
    if meminfo.exists():
        kb = {name: int(n) for name, n in re.findall(r"(\w+):\s+(\d+) kB", meminfo.read_text())}
        yield kb["MemAvailable"] * 1024, kb["MemTotal"] * 1024


class _Files(NamedTuple):
    """What a version of control groups calls them."""

    mounts: tuple[str, ...]
    """Where its memory groups may be, below where all are mounted."""
    most: str
    used: str
    inactive: str
    """Of ``memory.stat``: files that were read, which count as used until memory is needed."""


_V1 = _Files(("memory",), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files((".", "unified"), "memory.max", "memory.current", "inactive_file")


def _of_groups(own_groups: Path, groups: Path) -> Iterator[tuple[int, int]]:
    """The same of each group with a limit, from the process' own outwards."""
    if not own_groups.exists():
        return
    for line in own_groups.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        files = _V1 if controllers else _V2
        inside = PurePosixPath(path.lstrip("/"))
        if ".." in inside.parts:  # outside of what this container sees
            inside = PurePosixPath()
        for mount in files.mounts:
            for group in (inside, *inside.parents):
                with suppress(OSError, ValueError):  # "max", or a group that cannot be seen here
                    yield _of_group(groups / mount / group, files)


def _of_group(group: Path, files: _Files) -> tuple[int, int]:
    """Raises OSError where it is not there, ValueError where it has no limit."""
    most, used = (int((group / name).read_text()) for name in (files.most, files.used))
    stat = (group / "memory.stat").read_text()
    found = re.search(rf"^{files.inactive} (\d+)", stat, re.MULTILINE)
    return most - used + (int(found[1]) if found else 0), most
