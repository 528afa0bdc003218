"""A rank that this node's standby (`jobs.training.standby`) has forked, as whoever asked sees it.

Each rank has a connection. Asked for: a line of JSON (`Request`); answered: a byte once it is
forked, its exit code when it has ended. A further byte is the number of a signal for it, and the
end of the connection its SIGKILL: a rank does not outlive whoever asked for it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

_START_TIMEOUT_S = 300.0
"""How long a rank waits for the imports, which may come over a slow network."""
_LISTENS_WITHIN_S = 10.0
"""How long a standby may take from its start to the first thing that it does."""
_REQUEST_TIMEOUT_S = 10.0
FORKED = b"+"
"""The answer to a request."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a rank is to be."""

    config: str
    """Its `RankConfig` as JSON."""
    env: dict[str, str]
    """Its whole environment, which says where it stands."""
    folder: str
    """Where it runs."""

    @classmethod
    def read(cls, connection: socket.socket) -> Request:
        """The request of one of this user's processes. Raises OSError, ValueError."""
        if _peer_uid(connection) != os.getuid():
            raise PermissionError("asked by another user")
        connection.settimeout(_REQUEST_TIMEOUT_S)
        with connection.makefile("rb") as file:
            return cls(**json.loads(file.readline()))

    def become(self) -> None:
        """Take its environment and its folder."""
        os.environ.clear()
        os.environ.update(self.env)
        os.chdir(self.folder)


class ForkedRank:
    """A rank that the standby has forked, as its `subprocess.Popen` would be."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative when a signal ended it; None while it runs."""
        return self.wait(timeout=0)

    def wait(self, timeout: float | None = None) -> int | None:
        """The same, after it has ended or so many seconds have passed."""
        if self._code is None:
            self._connection.settimeout(timeout)
            with suppress(BlockingIOError, TimeoutError):
                self._code = self._hear()
                self._connection.close()
        return self._code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        with suppress(OSError):
            self._connection.sendall(bytes([number]))

    def _hear(self) -> int:
        with suppress(ConnectionError):
            if said := self._connection.recv(16):
                return int(said)
        return -signal.SIGKILL  # lost with its standby


def fork_rank(
    config: str,
    env: Mapping[str, str],
    address: str,
    *,
    listens_within_s: float = _LISTENS_WITHIN_S,
) -> ForkedRank | None:
    """A rank forked by the standby at an address; None where none can."""
    if not address:
        return None
    connection = socket.socket(socket.AF_UNIX)
    request = Request(config=config, env=dict(env), folder=str(Path.cwd()))
    try:
        connection.settimeout(_START_TIMEOUT_S)
        _connect(connection, address, listens_within_s)
        if _peer_uid(connection) != os.getuid():
            raise PermissionError("another user listens")
        connection.sendall(json.dumps(asdict(request)).encode() + b"\n")
        if connection.recv(1) == FORKED:
            return ForkedRank(connection)
    except OSError as error:
        sys.stderr.write(f"no standby forks ranks here ({error}); they import for themselves\n")
    connection.close()
    return None


def _connect(connection: socket.socket, address: str, within_s: float) -> None:
    """Connect to a standby that may have been started just now. Raises ConnectionRefusedError."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return connection.connect(abstract(address))
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def abstract(address: str) -> str:
    """A socket's name outside of any folder: it is gone with the process, and may be long."""
    return f"\0{address}"


def _peer_uid(connection: socket.socket) -> int:
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack("3i", credentials)[1])
