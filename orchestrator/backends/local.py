"""This machine: a job is a process in a session of its own."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

from orchestrator.backends.base import Job, JobRef
from orchestrator.errors import BackendError
from orchestrator.ledger.lease import Process, this_host
from orchestrator.ledger.status import JobState, JobStatus

NAME = "local"
GRACE_S = 20.0
"""Between the warning and the end of a cancelled job."""
REAP_TIMEOUT_S = 10.0
_PR_SET_PDEATHSIG = 1


class LocalBackend:
    """Processes of this machine, recognised by pid and start."""

    def __init__(self, grace_s: float = GRACE_S, node: str = "") -> None:
        """``node``: what this machine is called; its host name when empty."""
        self._grace_s = grace_s
        self._node = node or socket.gethostname()
        self._children: dict[JobRef, subprocess.Popen[bytes]] = {}

    def submit(self, job: Job, after: Sequence[JobRef] = ()) -> JobRef:
        """Start the process now; ``after`` must have ended, since there is no queue here."""
        if any(not status.state.is_final for status in self.poll(after).values()):
            raise BackendError(
                f"{job.name}: the local backend has no queue; submit it when its upstream is done"
            )
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            try:
                child = subprocess.Popen(
                    job.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=job.log.parent,
                    env={**os.environ, **job.env},
                    start_new_session=True,
                    preexec_fn=None if job.detached else die_with_parent,
                )
            except OSError as error:
                raise BackendError(
                    f"{job.argv[0]}: cannot be started ({error.strerror}); check the path"
                ) from None
        process = Process.of(child.pid)
        ref = JobRef(backend=NAME, id=f"{child.pid}:{process.started_at}:{process.start_ticks}")
        if job.detached:  # reaped, should it end before we do
            threading.Thread(target=child.wait, daemon=True).start()
        else:
            self._children[ref] = child
        return ref

    def poll(self, refs: Sequence[JobRef]) -> dict[JobRef, JobStatus]:
        """Children by their exit code; others only as running or unknown."""
        return {ref: self._status(ref) for ref in refs}

    def cancel(self, refs: Sequence[JobRef]) -> None:
        """SIGTERM to the job, SIGKILL to its whole session when it outstays the grace."""
        processes = [process for ref in refs if (process := _process(ref)).is_alive()]
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + self._grace_s
        while any(p.is_alive() for p in processes) and time.monotonic() < deadline:
            for child in self._children.values():
                child.poll()
            time.sleep(0.05)
        for ref in refs:
            end_session(_process(ref).pid)
            if started := self._children.get(ref):
                # A process whose threads are still dying has no exit code yet.
                with suppress(subprocess.TimeoutExpired):
                    started.wait(timeout=REAP_TIMEOUT_S)

    def _status(self, ref: JobRef) -> JobStatus:
        node = self._node
        child = self._children.get(ref)
        if child is None:
            state = JobState.RUNNING if _process(ref).is_alive() else JobState.UNKNOWN
            return JobStatus(state=state, node=node)
        code = child.poll()
        if code is None:
            return JobStatus(state=JobState.RUNNING, node=node)
        end_session(child.pid)  # a killed driver leaves ranks behind, and they would write on
        state = JobState.SUCCEEDED if code == 0 else JobState.FAILED
        return JobStatus(state=state, exit_code=code, node=node)


def die_with_parent() -> None:
    """Let the kernel end this process when its parent ends, however that comes about.

    Run between fork and exec. Linux only (prctl(2), PR_SET_PDEATHSIG); elsewhere nothing happens.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_session(session: int) -> None:
    """Kill every process that still is in the session a job was started in."""
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session:
                process.kill()
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue


def _process(ref: JobRef) -> Process:
    pid, started_at, ticks = ref.id.split(":")
    return Process(
        host=this_host(), pid=int(pid), started_at=float(started_at), start_ticks=int(ticks)
    )
