"""How a Ray cluster's head is reached from here, with Ray installed or not.

In: the cluster file's ``ray`` section and the environment. Out: its Jobs API.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from orchestrator.backends.local import die_with_parent
from orchestrator.backends.ray_jobs import TOKEN_REMEDY, RayJobs
from orchestrator.errors import BackendError, RequestError
from orchestrator.spec.cluster import Cluster

DASHBOARD_PORT = 8265
TUNNEL_TIMEOUT_S = 30.0
_PROBE_TIMEOUT_S = 5.0
_END_TIMEOUT_S = 5.0


@contextmanager
def reached(cluster: Cluster, *, tunnel_timeout_s: float = TUNNEL_TIMEOUT_S) -> Iterator[RayJobs]:
    """The cluster's jobs, while the way to it is open. Raises BackendError, RequestError."""
    token = token_here()
    if cluster.ray.tunnel:
        with _tunnel(cluster.ray.tunnel, tunnel_timeout_s, token) as jobs:
            yield jobs
        return
    address = cluster.ray.address or os.environ.get("RAY_ADDRESS", "")
    if not address:
        raise RequestError(
            "cluster: ray.address: names no cluster, and RAY_ADDRESS is not set; give one of them, "
            "or ray.tunnel"
        )
    yield RayJobs(dashboard_of(address, token), token)


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
    if address in ("auto", "local"):
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
def _tunnel(words: Sequence[str], timeout_s: float, token: str) -> Iterator[RayJobs]:
    """The cluster's jobs at the near end of a tunnel. Raises BackendError where none is made."""
    port = _free_port()
    argv = [word.replace("{port}", str(port)) for word in words]
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
                f"ray.tunnel: {argv[0]}: cannot be started ({error.strerror}); check the command"
            ) from None
        try:
            deadline = time.monotonic() + timeout_s
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    words_said = said.read().decode(errors="replace").strip()
                    raise BackendError(
                        f"ray.tunnel: {argv[0]}: opens no way to the cluster"
                        f"{f' ({words_said.splitlines()[-1]})' if words_said else ''}; "
                        "try the command by hand"
                    )
                time.sleep(0.1)
            yield jobs
        finally:
            process.terminate()
            try:
                process.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
