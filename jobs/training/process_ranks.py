"""Ranks of training without Ray: this node's as processes, other nodes' by their agents.

In a Slurm allocation the driver runs on the first node. It writes a launch into the allocation's
folder (what to train, where rank 0 listens), starts the ranks of its own node, and takes the
reports of the agents that start those of theirs (`jobs.training.node_agent`). Outside of Slurm the
ranks are the tasks of a submitit LocalExecutor, which meet through a file.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from jobs.training.rank import RankConfig, RankInfo, failure, free_port, last_line, log_path, log_to
from orchestrator.ledger.lease import Process
from orchestrator.ledger.run import ALLOCATION_FOLDER
from orchestrator.ledger.storage import Storage
from orchestrator.spec.cluster import Resources

_POLL_S = 0.2
_REPORTS_WAIT_S = 3.0
"""How long other nodes get to say which of their ranks failed, once one has."""
_MEET_TIMEOUT_S = 300.0
_TIMEOUT_MIN = 60
"""submitit counts any signal within the first ten minutes of a shorter job as its timeout."""

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

    def rank_info(self, node: int, local_rank: int) -> RankInfo:
        """Where a rank of a node stands."""
        return RankInfo(
            rank=node * self.ranks_per_node + local_rank,
            world_size=self.num_nodes * self.ranks_per_node,
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

    @property
    def culprit(self) -> tuple[int, int] | None:
        """The rank that failed, and its exit code; one that a signal ended before any other."""
        failed = [(int(rank), code) for rank, code in self.codes.items() if code]
        return min(failed, key=lambda f: (f[1] > 0, f[0]), default=None)


class NodeRanks:
    """The ranks of this node, as child processes."""

    def __init__(self, channel: Storage, number: int, launch: Launch, node: int) -> None:
        self._rank_infos = [launch.rank_info(node, local) for local in range(launch.ranks_per_node)]
        self._failed_at: float | None = None
        command = launch.command or (sys.executable, "-u", "-m", "jobs.training.process_ranks")
        self._ranks = [
            subprocess.Popen(
                [*command, channel.url, str(number)],
                env={**os.environ, **_rank_env(rank_info), **_address_env(launch)},
                stdin=subprocess.DEVNULL,
            )
            for rank_info in self._rank_infos
        ]

    def report(self) -> Report | None:
        """How they ended; None while all are well and some still run."""
        codes = {str(p.rank): r.poll() for p, r in zip(self._rank_infos, self._ranks, strict=True)}
        ended = {rank: code for rank, code in codes.items() if code is not None}
        if any(ended.values()):
            self._failed_at = self._failed_at or time.time()
        elif len(ended) < len(codes):
            return None
        return Report(node=node_name(), codes=ended, failed_at=self._failed_at)

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
    if folder := os.environ.get(ALLOCATION_FOLDER):
        _launch_nodes(config, resources, Storage(folder), record_event)
    else:
        _launch_local(config, resources)


def _launch_nodes(
    config: RankConfig, resources: Resources, channel: Storage, record_event: RecordEvent
) -> None:
    number = config.lease_n
    order = Launch(
        config=config.model_dump_json(),
        host=os.environ["SLURM_LAUNCH_NODE_IPADDR"],
        port=free_port(),
        num_nodes=resources.nodes,
        ranks_per_node=resources.local_world_size,
    )
    channel.create_json(launch_path(number), asdict(order))
    own = NodeRanks(channel, number, order, node=0)
    try:
        reports = await_reports(own, channel, number, order.num_nodes)
    finally:
        own.end()
        with suppress(OSError):
            channel.replace(over_path(number), b"{}")
    raise_failure(reports, config, resources, record_event)


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
        if any(r.culprit for r in reports):
            deadline = min(deadline, time.monotonic() + reports_wait_s)
        time.sleep(_POLL_S)


def raise_failure(
    reports: list[Report], config: RankConfig, resources: Resources, record_event: RecordEvent
) -> None:
    """Raise RunFailedError, and record which rank is to blame, when the ranks of a node failed."""
    failed = [(r, *r.culprit) for r in reports if r.culprit]
    if not failed:
        return
    # Ranks fail by losing each other: one that a signal ended is the cause, else the first.
    report, rank, code = min(failed, key=lambda f: (f[2] > 0, f[0].failed_at or 0.0))
    # Who merely lost a peer is not to blame, and the report that tells of the peer may be late.
    blamed = {"node": report.node} if code < 0 else {}
    record_event("rank_failed", rank=rank, code=code, **blamed)
    how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    how = f"rank {rank} on {report.node}: {how}"
    raise failure(config, resources.world_size, how, rank, is_lost=code < 0)


def launch_path(number: int) -> str:
    """In an allocation's folder: the launch under a lease."""
    return f"launch-{number:06d}.json"


def report_path(number: int, node: int) -> str:
    """How a node's ranks of that launch ended."""
    return f"launch-{number:06d}-node-{node:05d}.json"


def over_path(number: int) -> str:
    """Says that the launch is over: whatever still runs of it must end."""
    return f"launch-{number:06d}-over.json"


def node_name() -> str:
    """This node, as Slurm calls it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _rank_env(rank_info: RankInfo) -> dict[str, str]:
    return {name.upper(): str(value) for name, value in asdict(rank_info).items()}


def _address_env(launch: Launch) -> dict[str, str]:
    env = {"MASTER_ADDR": launch.host, "MASTER_PORT": str(launch.port)}
    if launch.num_nodes > 1 and "GLOO_SOCKET_IFNAME" not in os.environ:
        # Gloo would take the address of the host's name, which often is a loopback one.
        env["GLOO_SOCKET_IFNAME"] = interface_towards(launch.host)
    return env


def interface_towards(host: str) -> str:
    """The network interface of this node that reaches a host."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing: it only chooses a route
        own = probe.getsockname()[0]
    return next(
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(a.address == own for a in addresses)
    )


def run_rank(channel: Storage, number: int) -> None:
    """What each rank's process runs; it ends with the process that started it."""
    launch = Launch(**channel.read_json(launch_path(number)))
    config = RankConfig.model_validate_json(launch.config)
    config = config.model_copy(update={"driver": Process.of(os.getppid())})
    rank_info = RankInfo(
        **{name: int(os.environ[name.upper()]) for name in RankInfo.__annotations__}
    )
    _train(config, rank_info)


def run_task(config_json: str) -> None:
    """What each task of a LocalExecutor runs."""
    import submitit

    config, task = RankConfig.model_validate_json(config_json), submitit.JobEnvironment()
    rank_info = RankInfo(
        rank=task.global_rank,
        world_size=task.num_tasks,
        local_rank=task.local_rank,
        local_world_size=task.num_tasks // task.num_nodes,
    )
    host, port = meet(Path(config.folder) / "rendezvous.json", leads=rank_info.rank == 0)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = host, str(port)
    _train(config, rank_info)


def _train(config: RankConfig, rank_info: RankInfo) -> None:
    log_to(log_path(Path(config.folder), rank_info.rank))
    from jobs.training.loop import train_rank

    train_rank(config, rank_info)


def meet(path: Path, *, leads: bool, timeout_s: float = _MEET_TIMEOUT_S) -> tuple[str, int]:
    """Where rank 0 listens: it says so in a file that the others await. Raises TimeoutError."""
    if leads:
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps({"host": "127.0.0.1", "port": free_port()}))
        aside.replace(path)
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{path}: rank 0 did not say where it listens within {timeout_s:.0f} s; see its log"
            )
        time.sleep(_POLL_S)
    address = json.loads(path.read_text())
    return address["host"], address["port"]


def _launch_local(config: RankConfig, resources: Resources) -> None:
    import submitit

    executor = submitit.LocalExecutor(folder=Path(config.folder) / "submitit")
    executor.update_parameters(
        tasks_per_node=resources.world_size,
        gpus_per_node=resources.gpus_per_node,
        timeout_min=max(_TIMEOUT_MIN, resources.walltime_min),
    )
    job = executor.submit(run_task, config.model_dump_json())
    while not job.done():
        time.sleep(_POLL_S)
    error = next((e for e in (task.exception() for task in _tasks(job)) if e), None)
    if error is not None:
        raise failure(config, resources.world_size, last_line(error))


def _tasks(job: object) -> list[Any]:
    """A job of one task is its own task."""
    return getattr(job, "_sub_jobs", None) or [job]


if __name__ == "__main__":
    run_rank(Storage(sys.argv[1]), int(sys.argv[2]))
