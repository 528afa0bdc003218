"""Ranks of training without Ray: this node's as processes, other nodes' by their agents.

In a Slurm allocation the driver runs on the first node. It writes a launch into the allocation's
folder (what to train, where rank 0 listens), starts the ranks of its own node, and takes the
reports of the agents that start those of theirs (`jobs.training.node_agent`). Outside of Slurm this
machine is the only node, and the folder is the attempt's.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from jobs.training.forked_rank import ForkedRank, fork_rank
from jobs.training.rank import (
    RankConfig,
    RankInfo,
    failure,
    failure_recorded,
    free_port,
    log_path,
    log_to,
    most_telling,
)
from orchestrator.errors import Cause, ExitCode, cause_of
from orchestrator.ledger.lease import Process
from orchestrator.ledger.run import ALLOCATION_ADDRESS, ALLOCATION_FOLDER, STANDBY
from orchestrator.ledger.storage import Storage
from orchestrator.spec.cluster import Resources

_POLL_S = 0.2
_REPORTS_WAIT_S = 3.0
"""How long other nodes get to say which of their ranks failed, once one has."""

RecordEvent = Callable[..., None]
"""Records an event: its kind, and its fields."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One start of all ranks, as every node of the allocation reads it."""

    config: str
    """The `RankConfig` as JSON."""
    host: str
    """Address of rank 0's node."""
    port: int
    num_nodes: int
    ranks_per_node: int
    command: Sequence[str] = ()
    """What runs in place of this module, for tests; it gets the channel's URL and the number."""

    @property
    def num_ranks(self) -> int:
        """Ranks on all nodes."""
        return self.num_nodes * self.ranks_per_node

    def rank_info(self, node: int, local_rank: int) -> RankInfo:
        """Where a rank of a node stands."""
        return RankInfo(
            rank=node * self.ranks_per_node + local_rank,
            world_size=self.num_ranks,
            local_rank=local_rank,
            local_world_size=self.ranks_per_node,
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """How the ranks of one node ended."""

    node: str
    codes: dict[str, int]
    """By rank: its exit code, negative when a signal ended it."""
    failed_at: float | None = None
    """When the first of them failed, in seconds since the epoch."""


class NodeRanks:
    """The ranks of this node: its standby forks them, or they are child processes."""

    def __init__(self, channel: Storage, number: int, launch: Launch, node: int) -> None:
        self._rank_infos = [launch.rank_info(node, local) for local in range(launch.ranks_per_node)]
        self._failed_at: float | None = None
        address = "" if launch.command else os.environ.get(STANDBY, "")
        command = launch.command or (sys.executable, "-u", "-m", "jobs.training.process_ranks")
        argv = [*command, channel.url, str(number)]
        shared = {**os.environ, **_address_env(launch)}
        envs = [{**shared, **rank_env(rank_info)} for rank_info in self._rank_infos]
        self._ranks: list[ForkedRank | subprocess.Popen[bytes]] = [
            fork_rank(launch.config, env, address)
            or subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL)
            for env in envs
        ]

    def report(self) -> Report | None:
        """How they ended; None while all are well and some still run."""
        codes = {str(p.rank): r.poll() for p, r in zip(self._rank_infos, self._ranks, strict=True)}
        ended = {rank: code for rank, code in codes.items() if code is not None}
        if any(ended.values()):
            self._failed_at = self._failed_at or time.time()
        elif len(ended) < len(codes):
            return None
        node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        return Report(node=node, codes=ended, failed_at=self._failed_at)

    def send(self, number: int) -> None:
        """Pass a signal on to all that still run."""
        for rank in self._ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    def end(self) -> None:
        """End what still runs, and reap it."""
        self.send(signal.SIGKILL)
        for rank in self._ranks:
            rank.wait()


def launch(
    config: RankConfig, resources: Resources, record_event: RecordEvent = lambda *_, **__: None
) -> None:
    """Run all ranks to their end.

    Raises RunFailedError when any of them fails; ``record_event`` then gets which, and where.
    """
    number, allocation = config.lease_n, os.environ.get(ALLOCATION_FOLDER)
    channel = Storage(allocation or config.folder)
    order = Launch(
        config=config.model_dump_json(),
        host=os.environ[ALLOCATION_ADDRESS] if allocation else "127.0.0.1",
        port=free_port(),
        num_nodes=resources.max_nodes if allocation else 1,
        ranks_per_node=resources.local_world_size if allocation else resources.world_size,
    )
    channel.create_json(launch_path(number), asdict(order))
    own = NodeRanks(channel, number, order, node=0)
    try:
        reports = await_reports(own, channel, number, order.num_nodes)
    finally:
        own.end()
        with suppress(OSError):
            channel.replace(over_path(number), b"{}")
    raise_failure(reports, config, order.num_ranks, record_event)


def await_reports(
    own: NodeRanks,
    channel: Storage,
    number: int,
    num_nodes: int,
    *,
    reports_wait_s: float = _REPORTS_WAIT_S,
) -> list[Report]:
    """The reports of all nodes; those that came soon after the first that tells of a failure."""
    deadline = float("inf")
    while True:
        reports = [report] if (report := own.report()) else []
        for node in range(1, num_nodes):
            with suppress(FileNotFoundError):
                reports.append(Report(**channel.read_json(report_path(number, node))))
        if len(reports) == num_nodes or time.monotonic() > deadline:
            return reports
        if any(any(r.codes.values()) for r in reports):
            deadline = min(deadline, time.monotonic() + reports_wait_s)
        time.sleep(_POLL_S)


def raise_failure(
    reports: list[Report], config: RankConfig, world_size: int, record_event: RecordEvent
) -> None:
    """Raise RunFailedError, and record which rank is to blame, when the ranks of a node failed."""
    failed = [(r, int(rank), code) for r in reports for rank, code in r.codes.items() if code]
    if not failed:
        return
    told, is_any_lost = most_telling(config), any(code < 0 for _, _, code in failed)
    knows = told["rank"] if told and (told["cause"] != Cause.ERROR or not is_any_lost) else None
    # Ranks fail by losing each other: who knows a cause, or was ended by a signal, was first.
    report, rank, code = min(
        failed,
        key=lambda f: (
            *(f[1] != knows, f[2] > 0, f[2] != ExitCode.UNREACHABLE),
            *(f[0].failed_at or 0.0, f[1]),
        ),
    )
    # Who merely lost a peer is not to blame, and the report that tells of the peer may be late.
    blamed = {"node": report.node} if code < 0 else {}
    record_event("rank_failed", rank=rank, code=code, **blamed)
    how = f"rank {rank} on {report.node}: {end_of(code)}"
    error = failure(config, world_size, how, rank, is_lost=code < 0)
    if code == ExitCode.UNREACHABLE and error.cause is Cause.ERROR:  # it could say no more
        error.cause = Cause.STORAGE
    raise error


def end_of(code: int) -> str:
    """An exit code in words."""
    return f"ended by signal {-code}" if code < 0 else f"exit code {code}"


def launch_path(number: int) -> str:
    """In an allocation's folder: the launch under a lease."""
    return f"launch-{number:06d}.json"


def report_path(number: int, node: int) -> str:
    """How a node's ranks of that launch ended."""
    return f"launch-{number:06d}-node-{node:05d}.json"


def over_path(number: int) -> str:
    """Says that the launch is over: whatever still runs of it must end."""
    return f"launch-{number:06d}-over.json"


def _address_env(launch: Launch) -> dict[str, str]:
    env = {"MASTER_ADDR": launch.host, "MASTER_PORT": str(launch.port)}
    if launch.num_nodes > 1 and "GLOO_SOCKET_IFNAME" not in os.environ:
        # Gloo would take the address of the host's name, which often is a loopback one.
        env["GLOO_SOCKET_IFNAME"] = interface_towards(launch.host)
    return env


def interface_towards(host: str) -> str:
    """The network interface of this node that reaches a host."""
    family, *_, place = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(place)  # sends nothing: it only chooses a route
        own = probe.getsockname()[0]
    return next(
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(a.address.partition("%")[0] == own for a in addresses)
    )


def rank_env(rank_info: RankInfo) -> dict[str, str]:
    """Variables that tell a rank's process where it stands."""
    return {name.upper(): str(value) for name, value in asdict(rank_info).items()}


def run_rank(channel: Storage, number: int) -> None:
    """What a rank's process runs that no standby forks; it ends with whoever started it."""
    train_child(Launch(**channel.read_json(launch_path(number))).config)


def train_child(config_json: str) -> None:
    """Train the rank that the environment names, until it ends or the parent does."""
    config = RankConfig.model_validate_json(config_json)
    config = config.model_copy(update={"driver": Process.of(os.getppid())})
    rank_info = RankInfo(
        **{name: int(os.environ[name.upper()]) for name in RankInfo.__annotations__}
    )
    try:
        train_here(config, rank_info)
    except Exception as error:
        if cause_of(error) is not Cause.STORAGE:
            raise
        with suppress(OSError):  # the log may lie on the same disk
            traceback.print_exc()
        sys.exit(ExitCode.UNREACHABLE)


def train_here(config: RankConfig, rank_info: RankInfo) -> None:
    """Train this rank in this process, whose output becomes its log; record why it fails."""
    log_to(log_path(Path(config.folder), rank_info.rank))
    with failure_recorded(config, rank_info):
        from jobs.training.loop import train_rank

        train_rank(config, rank_info)


if __name__ == "__main__":
    run_rank(Storage(sys.argv[1]), int(sys.argv[2]))
