"""A mount that goes away: a file system in user space (FUSE) that answers until it is told not to.

It shows one file and speaks as much of the kernel's protocol (linux/fuse.h) as reading that takes.
Needs root and /dev/fuse.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_MNT_FORCE, _MNT_DETACH = 1, 2
_LOOKUP, _GETATTR, _OPEN, _READ, _STATFS, _RELEASE, _INIT, _FLUSH = 1, 3, 14, 15, 17, 18, 26, 25
_IN_HEADER = "<IIQQIIII"
_ROOT, _FILE = 1, 2
_UNTIL_S = 0
"""For how long the kernel may remember what it was told: not at all."""


def can_mount() -> bool:
    """Whether this process may mount such a file system."""
    return os.getuid() == 0 and os.access("/dev/fuse", os.R_OK | os.W_OK)


@dataclass
class HangingMount:
    """One folder with one file in it."""

    folder: Path
    name: str
    data: bytes
    hangs: bool = False
    """Whether nothing is answered any more."""
    _device: int = field(default=-1, init=False)

    @property
    def file(self) -> Path:
        """The one file."""
        return self.folder / self.name

    def mount(self) -> None:
        """Let it appear, and answer from a thread."""
        self.folder.mkdir(exist_ok=True)
        self._device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,allow_other"
        target = os.fsencode(self.folder)
        if _LIBC.mount(b"fuse", target, b"fuse", 0, options.encode()):
            raise OSError(ctypes.get_errno(), "mount")
        threading.Thread(target=self._serve, daemon=True).start()

    def unmount(self) -> None:
        """Let it go: whoever waits gets an error."""
        _LIBC.umount2(os.fsencode(self.folder), _MNT_FORCE)
        os.close(self._device)
        _LIBC.umount2(os.fsencode(self.folder), _MNT_DETACH)

    def _serve(self) -> None:
        with suppress(OSError):  # unmounted
            while request := os.read(self._device, 1 << 20):
                _, code, unique, node, *_ = struct.unpack_from(_IN_HEADER, request)
                if code == _INIT or not self.hangs:
                    self._answer(unique, *self._reply(code, node, request[40:]))

    def _answer(self, unique: int, error: int, body: bytes = b"") -> None:
        with suppress(FileNotFoundError):  # whoever asked has gone
            os.write(self._device, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)

    def _reply(self, code: int, node: int, body: bytes) -> tuple[int, bytes]:
        if code == _INIT:
            major, minor = struct.unpack_from("<II", body)
            said = struct.pack(
                "<IIIIHHIIHHI", major, min(minor, 31), 1 << 16, 0, 12, 9, 1 << 17, 1, 32, 0, 0
            )
            return 0, said.ljust(64, b"\0")
        if code == _LOOKUP and body.rstrip(b"\0") == self.name.encode():
            return 0, struct.pack("<QQQQII", _FILE, 0, _UNTIL_S, _UNTIL_S, 0, 0) + self._attributes(
                _FILE
            )
        if code == _GETATTR:
            return 0, struct.pack("<QII", _UNTIL_S, 0, 0) + self._attributes(node)
        if code == _OPEN:
            return 0, struct.pack("<QII", 1, 0, 0)
        if code == _READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            return 0, self.data[offset : offset + size]
        if code in (_FLUSH, _RELEASE):
            return 0, b""
        return (errno.ENOENT if code == _LOOKUP else errno.ENOSYS), b""

    def _attributes(self, node: int) -> bytes:
        size = len(self.data) if node == _FILE else 0
        mode = (stat.S_IFREG | 0o644) if node == _FILE else (stat.S_IFDIR | 0o755)
        times = (0,) * 6
        return struct.pack(
            "<QQQQQQIIIIIIIIII", node, size, 1, *times[:3], *times[3:], mode, 1, 0, 0, 0, 4096, 0
        )


@contextmanager
def hanging_mount(folder: Path, name: str, data: bytes) -> Iterator[HangingMount]:
    """Such a mount for as long as the context lasts."""
    mount = HangingMount(folder, name, data)
    mount.mount()
    try:
        yield mount
    finally:
        mount.unmount()
