"""The files below a source's root: all of them, or an error that names what cannot be read."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from orchestrator.errors import RequestError
from orchestrator.ledger.bucket_path import BucketPath

_LEADS_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_BUCKETS = ("s3", "gs", "az")
_LIKE_A_FILE = re.compile(r"\.(?=\w*[a-zA-Z])\w{1,8}$")
"""How the name of a file ends; ``v1.0`` may be a folder's."""
_ESCAPED = re.compile(r"\\(\\|x[0-9a-f]{2})")


class SourceFile(NamedTuple):
    """One file of a source, as far as its folder tells."""

    path: str
    """Relative to the root, with forward slashes, as text (`as_text`)."""
    size: int
    """In bytes; 0 where there is nothing to be read."""
    problem: str = ""
    """Why nobody should open it; empty for a file."""


def root_at(location: str, *, where: str) -> Path | BucketPath:
    """A source's root by its path or URL. Raises RequestError, ``where`` being who names it."""
    scheme, is_url, rest = location.rpartition("://")
    if not is_url or scheme == "file":
        return Path(rest)
    if scheme not in _BUCKETS:
        raise RequestError(f"{where}: {location}: is no path and none of s3://, gs:// and az://")
    return BucketPath(location.rstrip("/"))


def files_below(
    root: Path | BucketPath, on_empty_folder: Callable[[str], object] = bool
) -> Iterator[SourceFile]:
    """Every file below a folder, in no order; links are followed.

    Hidden files and folders are left out, and a folder that a link finds within itself.
    ``on_empty_folder`` is told the path of each that holds nothing: something may have been mounted
    there. Raises OSError, with the path, for a folder that cannot be listed, a file that is out of
    reach, a dead link that may stand for a folder, and a root without any file.
    """
    found = _files_on_disk(root, on_empty_folder) if isinstance(root, Path) else _objects(root)
    if (first := next(found, None)) is None:
        raise FileNotFoundError(f"{root}: holds nothing; see that it is mounted")
    yield first
    yield from found


def versions_below(root: Path | BucketPath, suffix: str) -> Iterator[tuple[str, int, str]]:
    """Path, size and version of every file below a folder that has the suffix, in no order.

    A version is another once the file has been written again: its time, or its tag in a bucket.
    Raises what `files_below` does.
    """
    if not isinstance(root, Path):
        yield from (seen for seen in root.versions() if seen[0].lower().endswith(suffix))
        return
    for file in files_below(root):
        if file.path.lower().endswith(suffix) and not file.problem:
            yield file.path, file.size, str((root / as_path(file.path)).stat().st_mtime_ns)


_LOST_AND_FOUND = "lost+found"
"""A file system's own folder at its root, which only its administrator may list."""


def _objects(root: BucketPath) -> Iterator[SourceFile]:
    for path, size in root.walk():
        if not any(part.startswith(".") for part in path.split("/")):
            yield SourceFile(as_text(path), size)


def _files_on_disk(root: Path, on_empty_folder: Callable[[str], object]) -> Iterator[SourceFile]:
    folders: list[tuple[Path, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while folders:
        folder, around = folders.pop()
        own = folder.stat()
        if (identity := (own.st_dev, own.st_ino)) in around:
            continue
        is_empty = True
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.path == str(root / _LOST_AND_FOUND):
                    continue
                is_empty = False
                found, problem = _look(entry)
                if stat.S_ISDIR(found):
                    folders.append((Path(entry.path), around | {identity}))
                    continue
                path = _below(root, entry.path)
                yield SourceFile(path, 0 if problem else entry.stat().st_size, problem)
        if is_empty:
            on_empty_folder(_below(root, folder))


def _below(root: Path, path: str | Path) -> str:
    return as_text(Path(path).relative_to(root).as_posix())


def _look(entry: os.DirEntry[str]) -> tuple[int, str]:
    """Its mode, and why nobody should open it."""
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        if not entry.is_symlink() or error.errno not in _LEADS_NOWHERE:
            raise
        if error.errno == errno.ELOOP:
            return 0, "a link to itself"
        if may_be_folder(entry.name):
            raise FileNotFoundError(
                f"{entry.path}: a dead link, which may stand for a folder; mount what it leads to, "
                "or remove the link"
            ) from None
        return 0, "a dead link"
    return mode, "" if stat.S_ISREG(mode) else "no regular file"


def may_be_folder(name: str) -> bool:
    """Whether a link of this name that leads nowhere may stand for a folder."""
    return not _LIKE_A_FILE.search(name)


def as_text(path: str) -> str:
    r"""A path as tables hold it: bytes that are no UTF-8 as ``\xe9``, a backslash doubled."""
    doubled = path.replace("\\", "\\\\")
    return os.fsencode(doubled).decode(errors="backslashreplace")


def as_path(text: str) -> Path:
    """The path that `as_text` has written down."""

    def unescaped(match: re.Match[str]) -> str:
        word = match[1]
        return "\\" if word == "\\" else os.fsdecode(bytes([int(word[1:], 16)]))

    return Path(_ESCAPED.sub(unescaped, text))
