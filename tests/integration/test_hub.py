"""Models of a hub, from a server on this machine that fails as it is told to."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import Cause
from orchestrator.ledger.storage import to_json

pytestmark = pytest.mark.slow
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 1000}
DRIVER = """
import sys, json
from pathlib import Path
from jobs.hub import download
from orchestrator.errors import cause_of
deadline_s, name, file = float(sys.argv[1]), sys.argv[2], sys.argv[4]
try:
    folder = download(name, sys.argv[3], where="x", file=file, deadline_s=deadline_s, pause_s=0.1)
    print(json.dumps({"files": sorted(p.name for p in folder.iterdir())}))
except Exception as error:
    print(json.dumps({"type": type(error).__name__, "cause": cause_of(error), "says": str(error)}))
"""


class Hub(ThreadingHTTPServer):
    """The parts of a hub that a download asks, with one repository, ``org/model``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(FILES)
        self.faults: list[int | str] = []
        """What happens to the next requests: a status, ``reset``, ``cut`` or a login ``page``."""
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Clients that went away are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def _answer(self, *, with_body: bool) -> None:
        self.server.asked.append(self.path)
        fault = self.server.faults.pop(0) if self.server.faults else None
        if fault == "reset":
            self.connection.close()
            return
        if isinstance(fault, int):
            self._send(fault, b'{"error": "no"}', {"Retry-After": "0"}, with_body)
            return
        if fault == "page":  # of whoever wants a login before the network is there
            self._send(200, b"<html>Who are you?</html>", {}, with_body)
            return
        body, headers = self._found()
        self._send(
            200 if body is not None else 404, body or b"", headers, with_body, fault == "cut"
        )

    def _found(self) -> tuple[bytes | None, dict[str, str]]:
        path = self.path.partition("?")[0]
        api, pages = "/api/models/org/model", f"/org/model/resolve/{COMMIT}/"
        if path.startswith(f"{api}/revision/"):
            names = [{"rfilename": name} for name in self.server.files]
            return to_json({"id": "org/model", "sha": COMMIT, "siblings": names}), {}
        if path.startswith(f"{api}/tree/"):
            return to_json([_entry(n, data) for n, data in self.server.files.items()]), {}
        data = self.server.files.get(path.removeprefix(pages))
        if not path.startswith(pages) or data is None:
            return None, {"X-Error-Code": "RepoNotFound"}
        etag = hashlib.sha256(data).hexdigest()
        return data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], with_body: bool, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if with_body:
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True


def _entry(name: str, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    return {"type": "file", "path": name, "size": len(data), "oid": digest[:40]}


@pytest.fixture
def server() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    yield hub
    hub.shutdown()
    thread.join()
    hub.server_close()


def fetched(
    url: str,
    home: Path,
    *,
    deadline_s: float = 60,
    name: str = "org/model",
    file: str = "",
    **more: str,
) -> dict[str, Any]:
    """What a fresh process gets, whose hub is at this address."""
    env = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        **more,
    }
    command = [sys.executable, "-c", DRIVER, str(deadline_s), name, COMMIT, file]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=120)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize(
    "faults",
    [
        ["page", 429, 407, 503],
        ["reset", "reset", 500, 502],
        [200, 504, "reset", "cut", 408],
    ],
    ids=str,
)
def test_a_hub_that_fails_for_a_while_is_asked_again(
    server: Hub, tmp_path: Path, faults: list[int | str]
) -> None:
    server.faults = [fault if fault != 200 else "" for fault in faults]
    assert fetched(server.url, tmp_path) == {"files": sorted(FILES)}
    assert server.faults == []


def test_one_file_is_had_by_its_path(server: Hub, tmp_path: Path) -> None:
    server.files["units/km.bin"] = b"centroids"
    server.faults = [503]
    assert fetched(server.url, tmp_path, file="units/km.bin") == {"files": ["units"]}
    assert not any("model.safetensors" in path for path in server.asked)
    end = fetched(server.url, tmp_path, file="units/no.bin")
    assert end["cause"] == Cause.BAD_REQUEST
    assert end["says"].startswith("x: org/model cannot be loaded (")


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "HF_TOKEN"), (403, "licence"), (404, "name"), (451, "from where the node is")],
)
def test_what_the_hub_refuses_is_a_wrong_request(
    server: Hub, tmp_path: Path, status: int, remedy: str
) -> None:
    server.faults = [status] * 50
    end = fetched(server.url, tmp_path)
    assert end["cause"] == Cause.BAD_REQUEST
    assert end["says"].startswith("x: org/model cannot be loaded (")
    assert remedy in end["says"]
    assert len(server.asked) < 4, "it was asked again"


def test_a_hub_that_is_away_is_circumstance_and_has_a_deadline(tmp_path: Path) -> None:
    started = time.monotonic()
    end = fetched("http://127.0.0.1:9", tmp_path, deadline_s=1)
    assert end["cause"] == Cause.NETWORK
    assert "x: the hub did not give org/model within 1 s (" in end["says"]
    assert "HF_ENDPOINT" in end["says"]
    assert time.monotonic() - started < 60


def test_a_hub_that_is_busy_until_the_deadline_is_circumstance(server: Hub, tmp_path: Path) -> None:
    server.faults = [429] * 1000
    assert fetched(server.url, tmp_path, deadline_s=1)["cause"] == Cause.NETWORK


def test_offline_without_the_model_is_a_wrong_request(server: Hub, tmp_path: Path) -> None:
    end = fetched(server.url, tmp_path, HF_HUB_OFFLINE="1")
    assert (end["cause"], server.asked) == (Cause.BAD_REQUEST, [])
    assert "unset HF_HUB_OFFLINE" in end["says"]


def test_what_was_fetched_is_found_offline_and_while_the_hub_is_away(
    server: Hub, tmp_path: Path
) -> None:
    fetched(server.url, tmp_path)
    before = len(server.asked)
    assert fetched(server.url, tmp_path, HF_HUB_OFFLINE="1") == {"files": sorted(FILES)}
    assert fetched("http://127.0.0.1:9", tmp_path) == {"files": sorted(FILES)}
    assert len(server.asked) == before


@pytest.mark.parametrize(
    "left", [("config.json",), ("model.safetensors",), ("flax_model.msgpack",)]
)
def test_a_repository_without_weights_or_config_is_refused(
    server: Hub, tmp_path: Path, left: tuple[str, ...]
) -> None:
    server.files = dict.fromkeys(left, b"x")
    end = fetched(server.url, tmp_path)
    assert end["cause"] == Cause.BAD_REQUEST
    assert "has no config.json with model.safetensors or pytorch_model.bin" in end["says"]


def test_pickled_weights_are_fetched_where_nothing_safer_is_there(
    server: Hub, tmp_path: Path
) -> None:
    server.files = {"config.json": b"{}", "pytorch_model.bin": b"x", "tf_model.h5": b"y"}
    assert fetched(server.url, tmp_path) == {"files": ["config.json", "pytorch_model.bin"]}
