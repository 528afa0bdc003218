"""A stretch of bytes as a file that is read: who fills it, says from where."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class Stretch(io.RawIOBase):
    """``size`` bytes that can be entered anywhere; wrap it in io.BufferedReader."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size, self._at = size, 0

    def read_at(self, at: int, length: int) -> bytes:
        """At most ``length`` bytes from ``at`` on, both within the stretch. Raises OSError."""
        raise NotImplementedError

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

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill the buffer, as far as the stretch goes. Raises OSError."""
        view = memoryview(buffer).cast("B")
        length = min(len(view), max(self._size - self._at, 0))
        found = self.read_at(self._at, length) if length else b""
        view[: len(found)] = found
        self._at += len(found)
        return len(found)
