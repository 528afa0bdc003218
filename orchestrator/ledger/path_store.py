"""Objects in a folder of a file system, each of which appears whole or not at all.

Exclusive creation is a hard link of a fsynced temporary file, so that on a shared file system, too,
one of many writers wins. What the system refuses stays an OSError with its number; where there is a
remedy, it is added to the system's words.
"""

from __future__ import annotations

import errno
import math
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from orchestrator.errors import AlreadyExistsError

TEMPORARY = ".tmp-"
"""Prefix of files that are not objects yet: what a killed writer leaves behind."""
_UNLISTED = (TEMPORARY, ".nfs")
"""Prefixes of what no listing shows: an NFS client keeps, as the latter, a file that was replaced
while somebody had it open."""

CHUNK_BYTES = 1 << 20
_OPEN_TRIES = 100
_REMEDIES = {
    errno.ENOSPC: "free some space, or name another {place}",
    errno.EDQUOT: "free some of the quota, or name another {place}",
    errno.EROFS: "mount it for writing, or name another {place}",
    errno.EACCES: "see who may write there",
    errno.EPERM: "see who may write there",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.EFBIG: "raise the limit on sizes of files (ulimit -f)",
    errno.ELOOP: "see where its links lead",
    **dict.fromkeys((errno.ESTALE, errno.ENOTCONN, errno.ESHUTDOWN), "mount it again"),
    **dict.fromkeys((errno.EIO, errno.ETIMEDOUT), "look at the disk or the mount"),
}
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class PathStore:
    """A folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def exists(self, path: str) -> bool:
        """Whether the object is there."""
        return (self._root / path).exists()

    def read_bytes(self, path: str, start: int) -> bytes:
        """The object from byte ``start`` on, from its end when negative."""
        with (self._root / path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(size + start, 0) if start < 0 else start)
            return file.read()

    def written_at(self, path: str) -> float:
        """When the object was written, in seconds since the epoch of the file system's clock."""
        return (self._root / path).stat().st_mtime

    def create(self, path: str, data: bytes) -> None:
        """Link a fsynced file to its name. Raises AlreadyExistsError."""
        target = self._root / path
        with explained(target):
            publish(_write_aside(target, [data]), target)

    def replace(self, path: str, data: bytes) -> None:
        """Rename a fsynced file to its name."""
        target = self._root / path
        with explained(target):
            _write_aside(target, [data]).replace(target)

    def list(self, prefix: str) -> dict[str, int]:
        """Relative path to size of every object below ``prefix``.

        Raises OSError for a folder that cannot be listed: what is in it is not missing.
        """
        sizes = {}
        for folder, _, names in os.walk(self._root / prefix, onerror=_unless_missing):
            for name in names:
                path = Path(folder, name)
                if not name.startswith(_UNLISTED):
                    try:
                        sizes[path.relative_to(self._root).as_posix()] = path.stat().st_size
                    except FileNotFoundError:  # removed while we walked
                        continue
        return sizes

    def children(self, prefix: str) -> set[str]:
        """Names directly below ``prefix``."""
        folder = self._root / prefix
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return {name for name in names if not name.startswith(_UNLISTED)}

    def upload(self, local: Path, path: str, tick: Callable[[], None]) -> None:
        """Create the object from a file; ``tick`` is called now and then.

        Raises AlreadyExistsError.
        """
        target = self._root / path
        with explained(target), local.open("rb") as file:
            chunks = iter(lambda: file.read(CHUNK_BYTES), b"")
            publish(_write_aside(target, chunks, tick), target)

    def sweep(self, but: str = "", before: float = math.inf) -> int:
        """Remove temporary files below this folder, but for one folder in it; how many.

        ``before``: only those that nobody has written to since, by the file system's clock.
        """
        kept = self._root / but if but else None
        left = [
            Path(folder, name)
            for folder, _, names in os.walk(self._root, onerror=_unless_missing)
            for name in names
            if name.startswith(TEMPORARY) and Path(folder) != kept
        ]
        old = [path for path in left if _written_at(path) < before]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)

    def delete(self, path: str) -> None:
        """Remove the object, and the folders that it leaves empty."""
        target = self._root / path
        target.unlink(missing_ok=True)
        folder = target.parent
        while folder != self._root:
            try:
                folder.rmdir()
            except OSError:  # not empty, or removed by somebody else
                return
            folder = folder.parent


def _written_at(path: Path) -> float:
    """When somebody last wrote to a file; never where it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return -math.inf


def _unless_missing(error: OSError) -> None:
    """Raise what a walk would pass over, but for a folder that is not there, or no more."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


@contextmanager
def explained(target: Path, place: str = "store") -> Iterator[None]:
    """Add the remedy to what the system says of a file, or of a ``place`` for files.

    Raises the same error with its number.
    """
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "")
        is_told = not error.errno or error.strerror != os.strerror(error.errno)
        if is_told or (error.filename and not remedy):
            raise
        words = "; ".join(filter(None, (error.strerror, remedy.format(place=place))))
        raise OSError(error.errno, words, str(error.filename or target)) from None


def _write_aside(
    target: Path, chunks: Iterable[bytes], tick: Callable[[], None] = lambda: None
) -> Path:
    """A temporary file beside the target with all of the data, on the disk."""
    with _open_aside(target) as file:
        try:
            for chunk in chunks:
                file.write(chunk)
                tick()
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    return Path(file.name)


def _open_aside(target: Path) -> BinaryIO:
    """A new temporary file in the target's folder, which is made when it is not there."""
    for _ in range(_OPEN_TRIES):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            return target.with_name(f"{TEMPORARY}{secrets.token_hex(8)}").open("xb")
        except (FileNotFoundError, FileExistsError) as error:
            # Somebody deleted the folder's last object just now; mkdir says "exists" of a folder
            # that is gone when it looks again.
            refused = error
    raise refused  # a file, or a link that leads nowhere, is where a folder should be


def publish(temporary: Path, target: Path) -> None:
    """Give a file on the disk its name, which nothing may have yet. Raises AlreadyExistsError."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        if not _are_one(temporary, target):
            raise AlreadyExistsError(f"{target}: already exists") from None
    except OSError as error:
        if error.errno in _NO_LINKS:
            words = "this file system has no hard links, which exclusive creation needs"
            raise OSError(error.errno, f"{words}; name another store", str(target)) from None
        raise
    finally:
        temporary.unlink()
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _are_one(temporary: Path, target: Path) -> bool:
    """Whether our link was made after all: NFS sends it again when the answer was lost."""
    try:
        return temporary.samefile(target)
    except FileNotFoundError:  # deleted just now
        return False
