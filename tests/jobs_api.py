"""A Jobs API on loopback that remembers jobs, asks for a token, and fails as it is told to.

What the real one says is seen in tests/integration/test_ray_cluster.py; here it can lose answers.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Fault = Literal["", "lost before", "lost after", "busy"]
"""The connection is closed before anything is done, or after; or all that comes is a 503."""
RELAY = """
import socket, sys, threading
def pump(one, other):
    while data := one.recv(65536):
        other.sendall(data)
    other.shutdown(socket.SHUT_WR)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    near, _ = listener.accept()
    far = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
    for pair in ((near, far), (far, near)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
"""
"""A tunnel without ssh: what comes to the first port goes to the second."""


class PlayedHead:
    """What was asked of it, and its jobs."""

    def __init__(self, token: str) -> None:
        self.token, self.url = token, ""
        self.jobs: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        """Of the next requests, in order."""
        self.on_submit: Callable[[dict[str, Any]], object] = bool

    def act(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, object]:
        """Do what is asked; status and answer."""
        self.asked.append((method, path))
        name, *rest = [*path.strip("/").split("/")[2:], ""]
        rest = [word for word in rest if word]
        if path == "/api/version":
            return 200, {"ray_version": "2.60.0"}
        if method == "POST" and not name:
            return self._submit(body)
        if not name:
            return 200, list(self.jobs.values())
        if name not in self.jobs:
            return 404, f"Job {name} does not exist"
        if method == "DELETE":
            return 200, {"deleted": self.jobs.pop(name) is not None}
        if rest == ["stop"]:
            self.jobs[name]["status"] = "STOPPED"
        return 200, {"logs": self.jobs[name].get("logs", "")} if rest else self.jobs[name]

    def _submit(self, body: dict[str, Any]) -> tuple[int, object]:
        name = body["submission_id"]
        if name in self.jobs:
            return 400, f"Traceback:\nValueError: Job with submission_id {name} already exists."
        self.jobs[name] = {**body, "status": "RUNNING"}
        self.on_submit(self.jobs[name])
        return 200, {"submission_id": name}


@contextmanager
def playing(token: str = "t0k3n", port: int = 0) -> Iterator[PlayedHead]:
    """A head that listens, at a free port unless one is given."""
    head = PlayedHead(token)

    class Handler(BaseHTTPRequestHandler):
        def _act(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
            fault = head.faults.pop(0) if head.faults else ""
            if fault == "lost before":
                return
            said = self.headers.get("Authorization")
            status, answer = (401, "no token") if said is None else (403, "another token")
            if head.token in ("", (said or "").removeprefix("Bearer ")):
                status, answer = (503, "busy")
                if fault != "busy":
                    status, answer = head.act(self.command, self.path, body)
            if fault != "lost after":
                self._say(status, answer)

        do_GET = do_POST = do_DELETE = _act

        def _say(self, status: int, answer: object) -> None:
            data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    head.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield head
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
