"""A way to an object store on which requests are refused, held up, cut off or left unanswered."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["500", "503", "429", "hold", "reset", "lost", "half"]
"""A status instead of an answer; no answer for `HOLD_S`; cut off before the store hears of it; done
by the store, the answer cut off whole, or after half of it."""
FAULTS: tuple[Fault, ...] = ("500", "503", "429", "reset", "lost", "half")
HOLD_S = 3.0


class FaultyStore:
    """A proxy to a store that answers at ``target`` (host, port).

    ``share``: how many of all requests meet a fault, by a seeded order. ``plan``: faults of the
    next requests, by method, before that.
    """

    def __init__(self, target: tuple[str, int], share: float = 0.0, seed: int = 0) -> None:
        self.target, self.share = target, share
        self.plan: list[tuple[str, Fault]] = []
        self.met: Counter[str] = Counter()
        self.heard: list[tuple[str, dict[str, str]]] = []
        """Method and headers of every request."""
        self._rng, self._lock = random.Random(seed), threading.Lock()

    def next_fault(self, method: str) -> Fault | None:
        """What this request is to meet."""
        with self._lock:
            for entry in self.plan:
                if entry[0] == method:
                    self.plan.remove(entry)
                    self.met[entry[1]] += 1
                    return entry[1]
            if self._rng.random() >= self.share:
                return None
            fault = self._rng.choice(FAULTS)
            self.met[fault] += 1
            return fault

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Its address, for as long as the context lasts."""
        store = self

        class Handler(_Handler):
            faulty = store

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faulty: FaultyStore

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.faulty.heard.append((self.command, {n.lower(): v for n, v in self.headers.items()}))
        fault = self.faulty.next_fault(self.command)
        if fault in ("500", "503", "429"):
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "reset":
            self._cut()
            return
        if fault == "hold":
            time.sleep(HOLD_S)
            self._cut()
            return
        status, headers, data = self._forward(body)
        if fault == "lost":
            self._cut()
            return
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        if "content-length" not in {name.lower() for name, _ in headers}:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault == "half":
            self.wfile.write(data[: len(data) // 2])
            self._cut()
            return
        self.wfile.write(data)

    def _answer_or_not(self) -> None:
        try:
            self._answer()
        except ConnectionError:  # whoever asked waits no longer
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer_or_not

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        host, port = self.faulty.target
        for _ in range(20):  # the server behind may be asked too fast for its queue
            try:
                line = http.client.HTTPConnection(host, port, timeout=120)
                line.request(self.command, self.path, body, dict(self.headers))
                answer = line.getresponse()
                return answer.status, answer.getheaders(), answer.read()
            except ConnectionError:
                time.sleep(0.1)
        return 503, [], b""

    def _cut(self) -> None:
        """Reset the connection."""
        self.wfile.flush()
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()
