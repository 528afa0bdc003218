"""A stretch of a file as a file of its own: a part of an audio file, a member of a tar.

And a file that remembers what kept it from being read, as not every library passes that on.
"""

from __future__ import annotations

import io
import os
from typing import BinaryIO


class Slice(io.RawIOBase):
    """``size`` bytes of ``file`` from ``offset`` on; wrap it in io.BufferedReader."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        super().__init__()
        self._file, self._offset, self._size = file, offset, size
        self._at = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a byte of the stretch."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill the buffer as far as the stretch goes."""
        length = min(len(buffer), max(self._size - self._at, 0))
        self._file.seek(self._offset + self._at)
        found = self._file.read(length)
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)


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

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill the buffer as far as the file goes."""
        try:
            found = self._file.read(len(buffer))
        except OSError as error:
            self.error = error
            raise
        buffer[: len(found)] = found
        return len(found)
