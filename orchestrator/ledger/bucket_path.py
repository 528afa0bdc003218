"""A source's files in a bucket: listed page by page, read whole where small, in ranges where large.

What goes wrong is an OSError, after the store was asked again for as long as `object_store` does.
An object that is missing from a bucket that answers is told from a bucket that does not.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.ledger.stretches import Stretch

if TYPE_CHECKING:
    from orchestrator.ledger.object_store import ObjectStore

Opened = io.BytesIO | io.BufferedReader

WHOLE_BYTES = 8 << 20
"""What is not larger is read in one request."""
_AHEAD_BYTES = 256 << 10, 8 << 20
"""How much is read at once: after a jump, and at most, doubling while it goes on in order."""


class BucketPath(NamedTuple):
    """A folder or an object of a bucket, which any process can open."""

    url: str
    """Of a source's root: ``s3://bucket/prefix``, ``gs://``, ``az://``."""
    path: str = ""
    """Below it; empty for the root."""

    def __truediv__(self, part: str | PurePath) -> BucketPath:
        """What lies below."""
        return BucketPath(self.url, "/".join(filter(None, (self.path, str(part)))))

    def __str__(self) -> str:
        return "/".join(filter(None, (self.url, self.path)))

    def walk(self) -> Iterator[tuple[str, int]]:
        """Relative path and size of all objects. Raises OSError, FileNotFoundError for none."""
        for path, size, _ in self.versions():
            yield path, size

    def versions(self) -> Iterator[tuple[str, int, str]]:
        """The same with what tells one writing of an object from another. Raises what `walk` does.

        That is its tag, or its time where the store has no tags.
        """
        found = False
        for seen in _store(str(self)).walk():
            found = True
            yield seen
        if not found:
            raise FileNotFoundError(f"{self}: holds nothing; check the path")

    def require(self, within_s: float | None = None) -> None:
        """Raises OSError when the bucket does not answer, or holds nothing here.

        ``within_s``: how long somebody waits for it, in seconds; jobs ask for longer.
        """
        url = str(self)
        store = _store(url) if within_s is None else _impatient_store(url, within_s / 3)
        if next(store.walk(), None) is None:
            raise FileNotFoundError(f"{self}: holds nothing; check the path")

    def size(self) -> int:
        """In bytes. Raises OSError."""
        return self._read(0, 1)[1]

    def open(self, _mode: str = "rb", buffering: int = -1) -> Opened:
        """Its bytes. Raises OSError."""
        return self.stretch(0, None, buffering)

    def stretch(self, offset: int, size: int | None, buffering: int = -1) -> Opened:
        """Some of its bytes; all where ``size`` is None.

        ``buffering``: of what size reads will be; who asks for large ones wants all of it. Raises
        OSError.
        """
        head, first = b"", WHOLE_BYTES if buffering > _AHEAD_BYTES[0] else _AHEAD_BYTES[0]
        if size is None:
            head, size = self._read(0, first)
        elif 0 < size <= first:
            head = self._read(offset, size)[0]
        if len(head) == size:
            return io.BytesIO(head)
        ranges = _Ranges(self, offset, size, head)
        return io.BufferedReader(ranges, max(buffering, io.DEFAULT_BUFFER_SIZE))

    def _read(self, begin: int, length: int) -> tuple[bytes, int]:
        """Some bytes, and the size of the object where they are its first."""
        store = _store(self.url)
        try:
            if begin == 0:
                return store.read_head(self.path, length)
            return store.read_range(self.path, begin, length), -1
        except FileNotFoundError:
            BucketPath(self.url).require()
            raise FileNotFoundError(f"{self}: is not in its bucket (any more)") from None


class _Ranges(Stretch):
    """A stretch of a large object, read ahead while it is read in order."""

    def __init__(self, path: BucketPath, offset: int, size: int, head: bytes) -> None:
        super().__init__(size)
        self._path, self._offset = path, offset
        self._held, self._held_at = head, 0
        self._ahead = _AHEAD_BYTES[0]

    def read_at(self, at: int, length: int) -> bytes:
        """As far as what is held goes. Raises OSError."""
        if not 0 <= at - self._held_at < len(self._held):
            self._fetch(at, length)
        begin = at - self._held_at
        return self._held[begin : begin + length]

    def _fetch(self, at: int, wanted: int) -> None:
        smallest, largest = _AHEAD_BYTES
        is_next = at == self._held_at + len(self._held)
        self._ahead = min(2 * self._ahead, largest) if is_next else smallest
        length = min(max(self._ahead, wanted), self._size - at)
        self._held = self._path._read(self._offset + at, length)[0]
        self._held_at = at
        if len(self._held) != length:
            raise OSError(f"{self._path}: is shorter than when it was listed")


def _impatient_store(url: str, part_s: float) -> ObjectStore:
    """One that gives up a request after so long, and asks again for as long."""
    from orchestrator.ledger.object_store import ObjectStore

    return ObjectStore(url, timeout_s=part_s, deadline_s=part_s)


@cache
def _store(url: str) -> ObjectStore:
    """One of this process; its library is imported where a source lies in a bucket."""
    from orchestrator.ledger.object_store import ObjectStore

    return ObjectStore(url)
