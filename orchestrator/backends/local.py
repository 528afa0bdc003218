"""This machine: a job is a process in a session of its own."""

from __future__ import annotations

import ctypes
import math
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
from orchestrator.errors import BackendError, Cause
from orchestrator.ledger.lease import Process, this_host
from orchestrator.ledger.status import JobState, JobStatus
from orchestrator.ledger.stuck_files import FileWatch, StuckFile

NAME = "local"
GRACE_S = 20.0
"""Between the warning and the end of a cancelled job."""
REAP_TIMEOUT_S = 10.0
_LOOK_EVERY_S = 10.0
"""Between two looks at what files jobs wait for."""
_PR_SET_PDEATHSIG = 1


class LocalBackend:
    """Processes of this machine, recognised by pid and start."""

    def __init__(
        self,
        grace_s: float = GRACE_S,
        node: str = "",
        hang_timeout_s: float = math.inf,
        reap_timeout_s: float = REAP_TIMEOUT_S,
    ) -> None:
        """``node``: what this machine is called; its host name when empty.

        ``hang_timeout_s``: a job that has waited for one file for so long is ended.
        ``reap_timeout_s``: how long one that was killed may take to go.
        """
        self._grace_s, self._hang_timeout_s = grace_s, hang_timeout_s
        self._reap_timeout_s = reap_timeout_s
        self._node = node or socket.gethostname()
        self._children: dict[JobRef, subprocess.Popen[bytes]] = {}
        self._files: dict[JobRef, FileWatch] = {}
        self._stuck: dict[JobRef, tuple[StuckFile, float]] = {}
        """Jobs that were killed for the file that they waited for, and when."""
        self._looked_at = -math.inf

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
        self._end_stuck(refs)
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
                    started.wait(timeout=self._reap_timeout_s)

    def kill_all(self) -> None:
        """End the sessions of all jobs that were not detached, without a warning."""
        for child in tuple(self._children.values()):
            if child.poll() is None:
                end_session(child.pid)

    def _status(self, ref: JobRef) -> JobStatus:
        node = self._node
        child = self._children.get(ref)
        if child is None:
            state = JobState.RUNNING if _process(ref).is_alive() else JobState.UNKNOWN
            return JobStatus(state=state, node=node)
        code = child.poll()
        stuck, killed_at = self._stuck.get(ref, (None, math.inf))
        # One that is not even to be killed, while its file does not answer, does no more work.
        if code is None and time.monotonic() - killed_at < self._reap_timeout_s:
            return JobStatus(state=JobState.RUNNING, node=node)
        end_session(child.pid)  # a killed driver leaves ranks behind, and they would write on
        if stuck:
            cause, detail = Cause.STORAGE, str(stuck)
            return JobStatus(
                state=JobState.FAILED, exit_code=code, node=node, cause=cause, detail=detail
            )
        state = JobState.SUCCEEDED if code == 0 else JobState.FAILED
        return JobStatus(state=state, exit_code=code, node=node)

    def _end_stuck(self, refs: Sequence[JobRef]) -> None:
        """Kill the jobs that a file keeps from doing anything, with all that they have started."""
        now = time.monotonic()
        if now - self._looked_at < min(_LOOK_EVERY_S, self._hang_timeout_s / 4):
            return
        self._looked_at = now
        for ref in refs:
            child = self._children.get(ref)
            if child is None or ref in self._stuck or child.poll() is not None:
                continue
            file = self._files.setdefault(ref, FileWatch(child.pid)).look()
            if file and file.seconds >= self._hang_timeout_s:
                self._stuck[ref] = file, now
                end_session(child.pid)


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
