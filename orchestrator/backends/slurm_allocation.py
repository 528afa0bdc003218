"""What a process knows of the Slurm job it runs in, and what it may ask for: to be run again."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil
import submitit

from orchestrator.backends.slurm import CAUSES
from orchestrator.backends.slurm_commands import SACCT, ask
from orchestrator.errors import BackendError, Cause, ExitCode
from orchestrator.ledger.status import JobState, JobStatus

TERMS = "ORCHESTRATOR_TERMS"
"""Environment variable with the file in which a process says when its job is to be started again,
where its script must tell the scheduler."""
REQUEUE_LINES = (
    "code=$?",
    f'if [ "$code" = {ExitCode.REQUEUE} ] && '
    'scontrol show job --oneliner "$SLURM_JOB_ID" | grep -q JobState=RUNNING; then',
    '  scontrol requeue "$SLURM_JOB_ID" || exit "$code"',
    f'  [ ! -s "${TERMS}" ] || scontrol update JobId="$SLURM_JOB_ID" "$(cat "${TERMS}")"',
    "  sleep 300",
    "fi",
    'exit "$code"',
)
"""The same in the job's script, outside of a container, after the command."""
_UPDATE_TRIES = 10
_UPDATE_EVERY_S = 1.0
KILLED_WITHIN_S = 300.0
"""How long the scheduler may take to end a job that it has put back into the queue."""


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """This process's job. A job that is requeued keeps its id and counts its restarts."""

    job_id: str
    """As scontrol takes it: ``12``, or ``12_3`` for a task of an array."""
    restarts: int
    """How often it was started before."""
    node_index: int
    """Number of this process's node in the job; the one with number 0 leads."""
    node: str
    """Name of this node."""
    leader_address: str
    """Network address of node 0, as the others reach it."""
    cluster: str = ""
    """Slurm's name of the cluster."""
    num_nodes: int = 1
    """How many nodes the job was given."""
    partition: str = ""
    """Where Slurm has started it, of the partitions that it may run in."""

    @classmethod
    def current(cls) -> Self:
        """The job that this process runs in. Raises BackendError when there is none."""
        if "SLURM_JOB_ID" not in os.environ:
            raise BackendError("slurm: this process is in no Slurm job; it is started by sbatch")
        task = submitit.JobEnvironment()
        return cls(
            job_id=task.job_id,
            restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            node_index=task.node,
            node=os.environ["SLURMD_NODENAME"],
            leader_address=os.environ["SLURM_LAUNCH_NODE_IPADDR"],
            cluster=os.environ.get("SLURM_CLUSTER_NAME", ""),
            num_nodes=int(os.environ.get("SLURM_JOB_NUM_NODES", "1")),
            partition=os.environ.get("SLURM_JOB_PARTITION", ""),
        )

    @property
    def restart_id(self) -> str:
        """Names this start of the job: ``12-0``."""
        return f"{self.job_id}-{self.restarts}"

    @property
    def noted(self) -> dict[str, str]:
        """What is written down with an attempt that runs in this job."""
        return {
            "job": self.job_id,
            "restart_id": self.restart_id,
            "node": self.node,
            "cluster": self.cluster,
        }

    def reachable_address(self) -> str:
        """This node's address as other nodes reach it, where it has several: the one Slurm uses.

        The address that the job was launched from where Slurm cannot be asked, or names another
        machine's.
        """
        with suppress(BackendError):
            said = ask("scontrol", "show", "node", "--oneliner", self.node)
            if found := re.search(r"\bNodeAddr=(\S+)", said):
                return own_address(found[1]) or self.leader_address
        return self.leader_address

    def requeue(self, terms: str = "") -> int:
        """Be put back into the queue, and wait for the end that this brings.

        ``terms``: when to be started again, as ``scontrol update`` takes it; by default soon.

        Returns an exit code when the job is not meant to run any more, or may not be requeued: one
        that somebody cancelled must not come back. One that is preempted must ask for it, because a
        job that ends by itself in its grace time counts as finished. Where this process cannot ask,
        as in a container, the code asks the job's script to do so.
        """
        if shutil.which("scontrol") is None:
            if path := os.environ.get(TERMS):
                Path(path).write_text(terms)
            return ExitCode.REQUEUE
        try:
            if "JobState=RUNNING" not in ask("scontrol", "show", "job", "--oneliner", self.job_id):
                return 1
            ask("scontrol", "requeue", self.job_id)
        except BackendError:
            return 1
        if terms:
            self._postpone(terms)
        _say("put back into the queue; waiting for the end")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(KILLED_WITHIN_S)
        return 1

    def _postpone(self, terms: str) -> None:
        """Have the job, which is being ended, started later; the scheduler may need a moment."""
        for _ in range(_UPDATE_TRIES):
            try:
                ask("scontrol", "update", f"JobId={self.job_id}", terms)
                return
            except BackendError as error:
                _say(str(error))
            time.sleep(_UPDATE_EVERY_S)

    def previous_end(self) -> tuple[JobStatus, float | None]:
        """How the job's start before this one ended, and when, as far as the books say.

        The time is in seconds since the epoch.
        """
        words = ["--duplicates", "--format=Start,State,End,NodeList", f"--jobs={self.job_id}"]
        rows: list[list[str]] = []
        with suppress(BackendError):
            rows = sorted(line.split("|") for line in ask(*SACCT, *words).splitlines())
        if not rows[: self.restarts]:
            return JobStatus(state=JobState.FAILED, cause=Cause.NODE_LOST), None
        _, word, ended, nodes = rows[: self.restarts][-1]
        cause = CAUSES.get(word.split()[0], Cause.NODE_LOST)
        status = JobStatus(state=JobState.FAILED, node=nodes, detail=word, cause=cause)
        return status, seconds_of(ended)


def _say(line: str) -> None:
    """A line for the job's log, which may lie in a store that is full or away."""
    with suppress(OSError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def own_address(name: str) -> str:
    """The address of this machine that a name or address stands for; empty where it is another's.

    Never a loopback one, which many machines give their own name.
    """
    own = {a.address for addresses in psutil.net_if_addrs().values() for a in addresses}
    try:
        found = [str(row[4][0]) for row in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    except OSError:
        return ""
    outer = (a for a in found if a in own and not ipaddress.ip_address(a).is_loopback)
    return next(outer, "")


def address_towards(host: str) -> str:
    """The address of this machine from which it reaches a host. Raises OSError."""
    family, *_, place = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(place)  # sends nothing: it only chooses a route
        return str(probe.getsockname()[0])


def seconds_of(local_time: str) -> float | None:
    """A time of Slurm's in seconds since the epoch; None for ``Unknown`` and the like."""
    try:
        return time.mktime(time.strptime(local_time, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None
