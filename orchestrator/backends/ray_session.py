"""The one Ray session of a local run: a head on loopback ports of its own, guarded by a token.

``ray start --block`` ends all of its daemons when it ends, and ends with us, so that the session
cannot outlive the supervisor by more than Ray's own reaper takes.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from orchestrator.backends.local import die_with_parent, end_session
from orchestrator.errors import BackendError

READY_TIMEOUT_S = 90.0
_TEMPORARY = Path("/tmp")
"""A short path is needed, and TMPDIR may be long."""


class RaySession:
    """A running head, started in the background; `wait_ready` returns when it answers."""

    def __init__(self, *, run: str, num_cpus: int, log: Path, code_env: Mapping[str, str]) -> None:
        # Unix socket paths are limited to 107 bytes, so the folder's name is short.
        prefix = f"orc-{hashlib.sha256(run.encode()).hexdigest()[:8]}-"
        for left in _TEMPORARY.glob(f"{prefix}*"):
            _end_left_session(left)
        self._folder = Path(tempfile.mkdtemp(prefix=prefix, dir=_TEMPORARY))
        self._port = _free_port()
        self._log = log
        self._code_env = code_env
        token = self._folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.env = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_ADDRESS": f"127.0.0.1:{self._port}",
        }
        self._process = self._start(num_cpus)

    def is_alive(self) -> bool:
        """Whether the head still runs."""
        return self._process.poll() is None

    def wait_ready(self) -> None:
        """Return once the head accepts connections. Raises BackendError with the log's path."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if not self.is_alive():
                break
            if b"Ray runtime started" in self._log.read_bytes():
                return
            time.sleep(0.1)
        raise BackendError(f"ray: the session did not start; see {self._log}")

    def stop(self) -> None:
        """End the session and remove its folder."""
        if self.is_alive():
            self._process.terminate()
            try:
                self._process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        end_session(self._process.pid)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, num_cpus: int) -> subprocess.Popen[bytes]:
        argv = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *(
                "--node-ip-address",
                "127.0.0.1",
                "--port",
                str(self._port),
                "--num-cpus",
                str(num_cpus),
            ),
            *("--include-dashboard", "false", "--temp-dir", str(self._folder)),
            # Ports of its own throughout: sessions of other runs live on the same machine.
            *("--ray-client-server-port", str(_free_port()), "--dashboard-port", str(_free_port())),
            *("--min-worker-port", "0", "--max-worker-port", "0"),
            *("--object-store-memory", str(512 * 1024**2)),
        ]
        with self._log.open("wb") as log:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._log.parent,
                env={**os.environ, **self._code_env, **self.env, "RAY_ADDRESS": ""},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )


def _end_left_session(folder: Path) -> None:
    """What a supervisor that was killed left of its session: processes that name its folder."""
    for process in psutil.process_iter():
        try:
            if any(str(folder) in word for word in process.cmdline()):
                process.kill()
        except psutil.Error:
            continue
    shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
