"""The processes of a Ray head on this machine, for the drill that ends them all at once."""

from __future__ import annotations

import os
from contextlib import suppress

import psutil

from orchestrator.errors import RequestError
from orchestrator.ledger.lease import Process, this_host

_SESSION = "--session_dir="


def require_here(name: str, supervisor: Process) -> None:
    """Raises RequestError where a run's supervisor, which is on the head, is on another machine."""
    if supervisor.host != this_host():
        head = supervisor.host.split("/")[0]
        raise RequestError(
            f"{name}: --kill head ends processes of the head, and this machine is none; run it on "
            f"{head}"
        )


def kill_head(supervisor: Process) -> None:
    """SIGKILL to the head that a supervisor is a job of, with all that it has started.

    Raises RequestError where the supervisor has ended, or is no job of a head.
    """
    try:
        ancestors = psutil.Process(supervisor.pid).parents()
    except psutil.NoSuchProcess:
        ancestors = []
    raylet = next((p for p in ancestors if p.name() == "raylet"), None)
    if raylet is None:
        raise RequestError("--kill head: the supervisor is no job of a head here; resume the run")
    for process in _processes(raylet):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _processes(raylet: psutil.Process) -> list[psutil.Process]:
    """Those of its node: what names its session, and all their children; not this process."""
    session = next(w.removeprefix(_SESSION) for w in raylet.cmdline() if w.startswith(_SESSION))
    found = {raylet, *raylet.children(recursive=True)}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(w.startswith("--") and session in w for w in process.cmdline()):
                found |= {process, *process.children(recursive=True)}
    return [process for process in found if process.pid != os.getpid()]
