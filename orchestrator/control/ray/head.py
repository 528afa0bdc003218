"""How a Ray cluster's head is reached from here, with Ray installed or not.

In: the cluster file's ``ray`` section and the environment. Out: its Jobs API.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.backends.local import die_with_parent
from orchestrator.backends.ray_jobs import TOKEN_REMEDY, RayJobs
from orchestrator.control.ray.launcher import launcher_of, program_of
from orchestrator.errors import BackendError, RequestError
from orchestrator.spec.cluster import Cluster, Ray

DASHBOARD_PORT = 8265
ON_THE_HEAD = ("auto", "local")
"""What RAY_ADDRESS is where the cluster's head is this machine."""
TUNNEL_TIMEOUT_S = 60.0
_PROBE_TIMEOUT_S = 5.0
_END_TIMEOUT_S = 5.0


@contextmanager
def reached(cluster: Cluster, *, tunnel_timeout_s: float = TUNNEL_TIMEOUT_S) -> Iterator[RayJobs]:
    """The cluster's jobs, while the way to it is open. Raises BackendError, RequestError."""
    token = token_here()
    if way := _way(cluster.ray):
        with _tunnel(way, tunnel_timeout_s, token) as jobs:
            yield jobs
        return
    yield RayJobs(dashboard_of(address_of(cluster), token), token)


def address_of(cluster: Cluster) -> str:
    """What names the cluster, where nothing but an address does; empty where something else does.

    Raises RequestError where nothing does.
    """
    if _way(cluster.ray):
        return ""
    if address := cluster.ray.address or os.environ.get("RAY_ADDRESS", ""):
        return address
    raise RequestError(
        "cluster: ray.address: names no cluster, and RAY_ADDRESS is not set; give one of them, "
        "ray.tunnel or ray.launcher"
    )


@dataclass(frozen=True)
class _Way:
    """The command that makes the dashboard reachable at ``{port}``, and who has named it."""

    named_by: str
    words: Sequence[str]
    remedy: str


def _way(ray: Ray) -> _Way | None:
    """The way to the head; None where it is reached without one. Raises RequestError."""
    if os.environ.get("RAY_ADDRESS") in ON_THE_HEAD:
        return None
    if ray.tunnel:
        return _Way("ray.tunnel", ray.tunnel, "try the command by hand")
    if ray.address or not ray.launcher:
        return None
    program, *words = launcher_of(ray).tunnel
    return _Way("ray.launcher", (program_of(program), *words), "see whether the cluster is up")


def token_here() -> str:
    """The token that Ray would take here; empty for none. Raises RequestError."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    path = Path(named) if named else Path("~/.ray/auth_token").expanduser()
    try:
        return path.read_text().strip()
    except OSError as error:
        if named:
            raise RequestError(
                f"RAY_AUTH_TOKEN_PATH: {path} cannot be read ({error.strerror}); {TOKEN_REMEDY}"
            ) from None
        return ""


def dashboard_of(address: str, token: str, *, port: int = DASHBOARD_PORT) -> str:
    """The URL of the dashboard of a cluster with this address.

    ``host:port`` is asked itself, as it may be the dashboard's; the port of Ray's own is not.
    Raises RequestError for an address that is none.
    """
    if "://" in address:
        if not address.startswith(("http://", "https://")):
            raise RequestError(f"RAY_ADDRESS: {address}: give http:// of the dashboard")
        return address
    if address in ON_THE_HEAD:
        return f"http://127.0.0.1:{port}"
    host, _, said = address.rpartition(":")
    if not host or not said.isdecimal():
        raise RequestError(f"RAY_ADDRESS: {address}: give host:port, http:// or auto")
    try:
        RayJobs(f"http://{address}", token, timeout_s=_PROBE_TIMEOUT_S).version()
    except BackendError:
        return f"http://{host}:{port}"
    return f"http://{address}"


@contextmanager
def _tunnel(way: _Way, timeout_s: float, token: str) -> Iterator[RayJobs]:
    """The cluster's jobs at the near end of a tunnel. Raises BackendError where none is made."""
    port = _free_port()
    argv = [word.replace("{port}", str(port)) for word in way.words]
    jobs = RayJobs(f"http://127.0.0.1:{port}", token)
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,  # Ctrl-C is for us
                preexec_fn=die_with_parent,
            )
        except OSError as error:
            raise BackendError(
                f"{way.named_by}: {argv[0]}: cannot be started ({error.strerror}); "
                "check the command"
            ) from None
        try:
            deadline = time.monotonic() + timeout_s
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    words_said = said.read().decode(errors="replace").strip()
                    raise BackendError(
                        f"{way.named_by}: {Path(argv[0]).name}: opens no way to the cluster"
                        f"{f' ({words_said.splitlines()[-1].strip()})' if words_said else ''}; "
                        f"{way.remedy}"
                    )
                time.sleep(0.1)
            yield jobs
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it and what it has started, such as the ssh of `ray dashboard`."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_TIMEOUT_S)
            return
    process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
