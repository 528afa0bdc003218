"""The files below a source's root: all of them, or an error that names what cannot be read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path


def files_below(root: Path, *, hidden_folders: bool = False) -> Iterator[tuple[Path, int]]:
    """Path and size in bytes of every file below a folder, in no order; links are followed.

    Hidden files are left out. Raises OSError, with the path, for a folder that cannot be listed, a
    file or link whose target is out of reach, and a name that no table can hold.
    """
    folders = [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                is_hidden = entry.name.startswith(".")
                if is_hidden and not (hidden_folders and entry.is_dir()):
                    continue
                if entry.is_dir():
                    folders.append(Path(entry.path))
                else:
                    yield Path(entry.path), _size(entry)


def _size(entry: os.DirEntry[str]) -> int:
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        words = "its name is not UTF-8; rename it"
        raise OSError(errno.EILSEQ, words, ascii(entry.path)) from None
    return entry.stat().st_size
