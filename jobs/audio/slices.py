"""A stretch of a file as a file of its own: a part of an audio file, a member of a tar.

And a file that remembers what kept it from being read, as not every library passes that on.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, BinaryIO

from orchestrator.ledger.stretches import Stretch

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class Slice(Stretch):
    """``size`` bytes of ``file`` from ``offset`` on."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        super().__init__(size)
        self._file, self._offset = file, offset

    def read_at(self, at: int, length: int) -> bytes:
        """Those bytes of the file."""
        self._file.seek(self._offset + at)
        return self._file.read(length)


class Watched(io.RawIOBase):
    """A file that remembers the error of a read."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self.error: OSError | None = None

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a byte of the file."""
        return self._file.seek(offset, whence)

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill the buffer as far as the file goes."""
        view = memoryview(buffer).cast("B")
        try:
            found = self._file.read(len(view))
        except OSError as error:
            self.error = error
            raise
        view[: len(found)] = found
        return len(found)
