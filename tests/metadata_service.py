"""The metadata services of three clouds, as a machine sees them, with what each asks for."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = "worker-7"


class MetadataService:
    """One machine's; times at which machines are taken back are in seconds since the epoch."""

    def __init__(self) -> None:
        self.ends_at: float | None = None
        self.of_another: float | None = None
        """When another machine of the same group ends; Azure tells all of them."""
        self.refusals = 0
        """How many requests to answer with an error first."""
        self._token = 0

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The base URL."""
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say(*service.answer("GET", self.path, dict(self.headers)))

            def do_PUT(self) -> None:
                self._say(*service.answer("PUT", self.path, dict(self.headers)))

            def _say(self, code: int, text: str) -> None:
                self.send_response(code)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """Status and text."""
        given = {name.lower(): value for name, value in headers.items()}
        if self.refusals:
            self.refusals -= 1
            return 503, "try again"
        if path == "/latest/api/token" and method == "PUT":
            self._token += 1
            life = given.get("x-aws-ec2-metadata-token-ttl-seconds", "")
            return (200, f"t{self._token}") if life.isdecimal() else (400, "")
        if path == "/latest/meta-data/spot/instance-action":
            return self._aws(given.get("x-aws-ec2-metadata-token", ""))
        if path == "/computeMetadata/v1/instance/preempted":
            flag = "TRUE" if self.ends_at else "FALSE"
            return (200, flag) if given.get("metadata-flavor") == "Google" else (403, "")
        if path.startswith("/metadata/"):
            return self._azure(path) if given.get("metadata") == "true" else (400, "")
        return 404, ""

    def forget_tokens(self) -> None:
        """As after their time."""
        self._token += 1

    def _aws(self, token: str) -> tuple[int, str]:
        if token != f"t{self._token}":
            return 401, ""
        if self.ends_at is None:
            return 404, ""
        time = datetime.fromtimestamp(self.ends_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return 200, json.dumps({"action": "terminate", "time": time})

    def _azure(self, path: str) -> tuple[int, str]:
        if path.startswith("/metadata/instance/compute/name"):
            return 200, NAME
        machines = {"worker-3": self.of_another, NAME: self.ends_at}
        events = [
            {
                "EventId": name,
                "EventType": "Preempt",
                "ResourceType": "VirtualMachine",
                "Resources": [name],
                "EventStatus": "Scheduled",
                "NotBefore": format_datetime(datetime.fromtimestamp(at, UTC), usegmt=True),
            }
            for name, at in machines.items()
            if at
        ]
        reboot = {"EventType": "Reboot", "Resources": [NAME], "NotBefore": ""}
        return 200, json.dumps({"DocumentIncarnation": 1, "Events": [reboot, *events]})
