"""A Ray head on ports of its own, guarded by a token; and a node that joins one.

``ray start --block`` ends all of its daemons when it ends, and ends with us, so that the session
cannot outlive the supervisor by more than Ray's own reaper takes.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from orchestrator.backends.local import die_with_parent, end_session
from orchestrator.errors import BackendError, Cause
from orchestrator.ledger.run import RAY_CODE

LOOPBACK = "127.0.0.1"
READY_TIMEOUT_S = 240.0
"""Ray itself takes ten seconds; a machine with much else to do takes minutes."""
OBJECT_STORE_BYTES = 512 * 1024**2
"""Of each node: what passes through it is shards of units and sums, never audio."""
_RAYS_WAYS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_COMMON_ENV = {"RAY_AUTH_MODE": "token", **_RAYS_WAYS}
_JOINING_ENV = {"RAY_NUM_REDIS_GET_RETRIES": "1", "RAY_py_gcs_connect_timeout_s": "20"}
"""For who joins a session that was up: Ray tries 20 times for 41 s to reach one that has gone."""
_LOOK_EVERY_S = 5.0
_JOIN_TIMEOUT_S = 30.0
_TEMPORARY = Path("/tmp")
"""A short path is needed, and TMPDIR may be long."""


@dataclass(frozen=True, kw_only=True)
class RayHead:
    """What a worker needs to join a Ray head."""

    address: str
    """``host:port`` of the head's Ray."""
    token: str
    """What Ray asks everybody for."""


class _RayProcess:
    """What ``ray start`` runs as; it ends when this does."""

    def __init__(self, words: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        argv = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *words),
            *("--min-worker-port", "0", "--max-worker-port", "0"),
            *("--object-store-memory", str(OBJECT_STORE_BYTES)),
        ]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env={**os.environ, **env, "RAY_ADDRESS": ""},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def is_alive(self) -> bool:
        """Whether it is part of the session, or on its way to it."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Let Ray end its daemons, then end whatever is left of its processes."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        end_session(self._process.pid)


class Session(Protocol):
    """A Ray session, as a supervisor uses it."""

    env: Mapping[str, str]
    """What lets processes join it."""

    def is_alive(self) -> bool:
        """Whether it is up, or on its way to it."""
        ...

    def wait_ready(self) -> None:
        """Return once it accepts connections. Raises BackendError with cause ``ray_lost``."""
        ...

    def stop(self) -> None:
        """End it, where it is ours."""
        ...


class JoinedRay:
    """The cluster that this process is a job of: others started it, and keep it."""

    def __init__(self, address: str, code: Path) -> None:
        """``code``: what the cluster's nodes import; Ray takes it there."""
        own = {"RAY_ADDRESS": address, RAY_CODE: str(code)}
        # Whether the cluster asks for a token is said by the environment that this process has.
        self.env: Mapping[str, str] = {**_RAYS_WAYS, **own, **_JOINING_ENV}
        self._address, self._answered_at = address, -math.inf

    def is_alive(self) -> bool:
        """Whether its head takes connections, or did some seconds ago."""
        if time.monotonic() - self._answered_at > _LOOK_EVERY_S and self._answers():
            self._answered_at = time.monotonic()
        return time.monotonic() - self._answered_at <= _LOOK_EVERY_S

    def wait_ready(self) -> None:
        """Return once its head takes connections. Raises BackendError, cause ``ray_lost``."""
        deadline = time.monotonic() + _JOIN_TIMEOUT_S
        while not self.is_alive():
            if time.monotonic() > deadline:
                raise BackendError(
                    f"ray: the head at {self._address} takes no connections; start it again, and "
                    "`orchestrator resume` there",
                    cause=Cause.RAY_LOST,
                )
            time.sleep(0.5)

    def stop(self) -> None:
        """It goes on."""

    def _answers(self) -> bool:
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
        except OSError:
            return False
        return True


class RaySession(_RayProcess):
    """A running head, started in the background; `wait_ready` returns when it answers."""

    def __init__(
        self,
        *,
        run: str,
        num_cpus: int,
        log: Path,
        code_env: Mapping[str, str],
        address: str = LOOPBACK,
    ) -> None:
        """``address``: of this machine, as other nodes reach it; by default none of them can."""
        # Unix socket paths are limited to 107 bytes, so the folder's name is short.
        prefix = f"orc-{hashlib.sha256(run.encode()).hexdigest()[:8]}-"
        for left in _TEMPORARY.glob(f"{prefix}*"):
            _end_left_session(left)
        self._folder = Path(tempfile.mkdtemp(prefix=prefix, dir=_TEMPORARY))
        self._log, port = log, str(_free_port())
        host = f"[{address}]" if ":" in address else address
        self.head = RayHead(address=f"{host}:{port}", token=secrets.token_hex(32))
        token = self._folder / "token"
        token.touch(mode=0o600)
        token.write_text(self.head.token)
        own = {
            **_COMMON_ENV,
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ADDRESS": self.head.address,
        }
        self.env: Mapping[str, str] = {**own, **_JOINING_ENV}
        words = [
            *("--head", "--node-ip-address", address, "--port", port),
            *("--num-cpus", str(num_cpus), "--include-dashboard", "false"),
            *("--temp-dir", str(self._folder)),
            # Ports of its own throughout: sessions of other runs live on the same machine.
            *("--ray-client-server-port", str(_free_port()), "--dashboard-port", str(_free_port())),
        ]
        super().__init__(words, log, {**code_env, **own})
        self._daemons: list[psutil.Process] = []
        """Those of a session that is up."""

    def is_alive(self) -> bool:
        """Whether it is up with all of its daemons, or on its way to it.

        Ray itself looks once a second; a process that loses a daemon may end sooner than that.
        """
        return super().is_alive() and all(map(_runs, self._daemons))

    def wait_ready(self) -> None:
        """Return once the head accepts connections.

        Raises BackendError with Ray's last words, the log's path, and cause ``ray_lost``.
        """
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if not self.is_alive():
                break
            if b"Ray runtime started" in self._log.read_bytes():
                self._daemons = self._daemons or _children(self._process.pid)
                return
            time.sleep(0.1)
        raise BackendError(
            f"ray: the session did not start{self._last_words()}; see {self._log}",
            cause=Cause.RAY_LOST,
        )

    def _last_words(self) -> str:
        """What Ray said last, in brackets; empty for nothing."""
        lines = self._log.read_text(errors="replace").split("\n")
        return next((f" ({line.strip()[:200]})" for line in reversed(lines) if line.strip()), "")

    def stop(self) -> None:
        """End the session and remove its folder."""
        super().stop()
        shutil.rmtree(self._folder, ignore_errors=True)


class RayNode(_RayProcess):
    """This node, as one more of a session whose head is elsewhere."""

    def __init__(
        self,
        head: RayHead,
        *,
        address: str,
        num_cpus: int,
        num_gpus: int,
        log: Path,
        code_env: Mapping[str, str],
    ) -> None:
        words = [
            *("--address", head.address, "--node-ip-address", address),
            *("--num-cpus", str(num_cpus), "--num-gpus", str(num_gpus)),
        ]
        token = {"RAY_AUTH_TOKEN": head.token}  # no file: a node may end without a goodbye
        super().__init__(words, log, {**_COMMON_ENV, **code_env, **token})


def _end_left_session(folder: Path) -> None:
    """What a supervisor that was killed left of its session: processes that name its folder."""
    for process in psutil.process_iter():
        try:
            if any(str(folder) in word for word in process.cmdline()):
                process.kill()
        except psutil.Error:
            continue
    shutil.rmtree(folder, ignore_errors=True)


def _children(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children()
    return []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
