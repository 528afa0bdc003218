"""What is said of a disk that failed: which folder it was, and how much room it has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import (
    Cause,
    OrchestratorError,
    RunFailedError,
    cause_of,
    last_sentence,
)
from orchestrator.quantities import format_bytes


@contextmanager
def writing(folder: Path, where: str) -> Iterator[None]:
    """Writes below a folder; ``where`` says in messages what it is and what names it.

    Raises RunFailedError with cause ``storage``, the folder and its room when the disk fails, in
    whatever words the library that writes puts it.
    """
    try:
        yield
    except Exception as error:  # libraries wrap the system's words in types of their own
        if isinstance(error, OrchestratorError) or cause_of(error) is not Cause.STORAGE:
            raise
        raise RunFailedError(
            f"{where}: {folder}: cannot be written ({last_sentence(error)}); {room(folder)}: "
            "free space there, or name another folder",
            cause=Cause.STORAGE,
        ) from error


def room(folder: Path) -> str:
    """How much is free on a folder's disk: ``0 B of 2 MB and 12 files are free on /scratch``."""
    there = next((p for p in (folder, *folder.parents) if p.exists()), Path("/"))
    try:
        disk = os.statvfs(there)
    except OSError as error:  # a mount that went away
        return f"{there} cannot be asked how much is free ({error.strerror})"
    free, total = (format_bytes(n * disk.f_frsize) for n in (disk.f_bavail, disk.f_blocks))
    files = f" and {disk.f_favail} files" if disk.f_files else ""
    return f"{free} of {total}{files} are free on {there}"


def disk_sentence(error: BaseException) -> str:
    """`last_sentence`, and the room on the disk of the file that it names, where one failed."""
    said = last_sentence(error)
    if isinstance(error, OrchestratorError) or cause_of(error) is not Cause.STORAGE:
        return said
    names = (getattr(error, "filename2", None), getattr(error, "filename", None))
    name = next((n for n in names if isinstance(n, str)), "")
    return f"{said}; {room(Path(name).absolute())}" if name else said
