"""A new folder on this machine that appears whole or not at all, whatever ends its maker."""

from __future__ import annotations

import glob
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import RequestError

_MARK = ".in-the-making-"
_LEFT_FOR_S = 3600.0
"""Whoever makes a folder writes more often than that."""


@contextmanager
def new_folder(to: Path, option: str) -> Iterator[Path]:
    """A folder to be filled, which is ``to`` after the block; beside it there is room for copies.

    ``option``: where the user has named it. Raises RequestError when something is there already.
    """
    require_free(to, option)
    to.parent.mkdir(parents=True, exist_ok=True)
    sweep(to)
    with tempfile.TemporaryDirectory(prefix=f".{to.name}{_MARK}", dir=to.parent) as temporary:
        folder = Path(temporary, "made")
        folder.mkdir()
        yield folder
        if to.exists():
            to.rmdir()  # empty, as was seen; another process may have filled it since
        folder.rename(to)


def require_free(to: Path, option: str) -> None:
    """Raises RequestError when something is there already."""
    if to.is_symlink() or (to.exists() and not (to.is_dir() and not any(to.iterdir()))):
        raise RequestError(f"{option}: {to} is there already; name a new folder, or an empty one")


def sweep(to: Path) -> None:
    """Remove what makers of the same folder have left that were killed and wrote nothing since."""
    for left in to.parent.glob(f".{glob.escape(to.name)}{_MARK}????????"):
        try:
            written_at = max(path.lstat().st_mtime for path in (left, *left.rglob("*")))
        except FileNotFoundError:  # another maker removes it, or is at work in it
            continue
        if time.time() - written_at > _LEFT_FOR_S:
            shutil.rmtree(left, ignore_errors=True)  # another maker may do the same
