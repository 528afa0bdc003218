"""A webhook's server on loopback that plays a script: it answers, answers late, or not at all."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Answer = int | Literal["hang", "lost"]
"""A status; nothing for a minute; the connection closed once the request was read."""
SECRET = "T0K3N-planted-here"
"""Part of the address: it must be written nowhere."""


class Receiver:
    """What was received, and how the next requests are answered; after the script with 200."""

    def __init__(self, script: Sequence[Answer] = (), retry_after: str = "") -> None:
        self.received: list[dict[str, Any]] = []
        self.script = list(script)
        self.retry_after = retry_after
        self.url = ""
        self.is_over = threading.Event()

    @property
    def told(self) -> list[str]:
        """The events in the order in which they came, each id once."""
        return [notice["event"] for notice in {n["id"]: n for n in self.received}.values()]


@contextmanager
def receiving(script: Sequence[Answer] = (), retry_after: str = "") -> Iterator[Receiver]:
    """A receiver that listens."""
    receiver = Receiver(script, retry_after)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            receiver.received.append(json.loads(self.rfile.read(size)))
            answer = receiver.script.pop(0) if receiver.script else 200
            if answer == "hang":
                receiver.is_over.wait(60)
            elif answer != "lost":
                self._answer(int(answer))

        def _answer(self, status: int) -> None:
            self.send_response(status)
            if receiver.retry_after:
                self.send_header("Retry-After", receiver.retry_after)
            self.send_header("Location", receiver.url)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_port}/services/{SECRET}"
    threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True).start()
    try:
        yield receiver
    finally:
        receiver.is_over.set()
        server.shutdown()
        server.server_close()
