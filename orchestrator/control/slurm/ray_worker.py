"""A worker node of a data stage's Ray cluster; each task of the array runs it by ``python -m``.

Joins the head when there is one, joins again when the head has moved, and leaves when the stage is
complete. When the scheduler warns, it leaves at once (a shard that was under way is done elsewhere)
and asks for its place in the queue again.
"""

from __future__ import annotations

import logging
import math
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from orchestrator.backends.ray_session import RayHead, RayNode
from orchestrator.backends.slurm_allocation import Allocation, address_towards
from orchestrator.control.code_snapshot import code_env
from orchestrator.control.job import log_to_stderr, run_parser, store_and_run
from orchestrator.control.slurm.ray_cluster import published_head
from orchestrator.ledger.attempt import NODE_NAME
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.spending import held
from orchestrator.ledger.store import Store

_LOOK_EVERY_S = 8.0
"""About how often a node that has joined looks for a head that has moved."""
JOIN_EVERY_S = 2.0
PATIENCE_S = 30.0
"""How late a file system may show what others have published."""
_ANSWER_TIMEOUT_S = 5.0
_NOTE_EVERY_S = 60.0
_REJOIN_DELAY_S = 5.0

log = logging.getLogger(__name__)


class Worker:
    """This node's part in the stage."""

    def __init__(
        self,
        store: Store,
        run: RunFolder,
        instance: str,
        allocation: Allocation,
        join_every_s: float = JOIN_EVERY_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._store, self._run, self._allocation = store, run, allocation
        self._join_every_s, self._patience_s = join_every_s, patience_s
        plan = run.plan()
        self._instance, self._members = instance, plan.group(instance)
        self._needed = [plan.instance(n) for m in self._members for n in m.needs.values()]
        self._idle_timeout_s = run.cluster().slurm.idle_timeout_s
        mine = plan.instance(instance)
        cluster = run.cluster()
        self._resources = cluster.resources_of(mine.stage, mine.node)
        cpus = self._resources.workers_per_node * self._resources.cpus_per_worker
        self._held = held(self._resources.gpus_per_node, cpus, cluster.prices)
        self._started_at, self._noted_at = time.time(), -math.inf
        self._node: RayNode | None = None
        self._joined: RayHead | None = None
        self._is_done = False
        self._not_before = 0.0
        self._warned = threading.Event()
        self._signal = 0

    def warn(self, number: int, _frame: FrameType | None) -> None:
        """Remember that the scheduler wants this node back."""
        self._signal = number
        self._warned.set()

    def work(self) -> int:
        """Be a node until nothing is left to do; the exit code."""
        useful_at = time.monotonic()
        try:
            while not self._warned.is_set():
                if self._look():
                    useful_at = time.monotonic()
                elif self._is_for_nothing(time.monotonic() - useful_at):
                    log.info("the stage cannot have begun; gives its node back")
                    return 0
                elif time.monotonic() - useful_at > self._idle_timeout_s:
                    log.info("no head for %.0f s; gives its node back", self._idle_timeout_s)
                    return 0
                if self._is_done:
                    return 0
                every_s = _LOOK_EVERY_S if self._node else self._join_every_s
                self._warned.wait(every_s * random.uniform(0.5, 1.5))
        finally:
            self._leave()
            with suppress(OSError):
                self._note(every_s=0.0)
        log.info("warned by %s", signal.Signals(self._signal).name)
        return self._allocation.requeue()

    def _look(self) -> bool:
        """Be where the head is; whether there is one that answers."""
        try:
            self._note()
            self._is_done = self._store.has(*self._members) or self._run.moved is not None
            head = published_head(self._run.stage(self._instance))
        except OSError as error:  # the store may be back at the next look
            log.warning("the store is out of reach: %s", error)
            return False
        if head and not answers(head.address):  # Ray itself would try for ever
            head = None
        if not self._is_done:
            self._join(head)
        return head is not None

    def _note(self, every_s: float = _NOTE_EVERY_S) -> None:
        """Say now and then since when this node is held, and that it still is."""
        if time.monotonic() - self._noted_at < every_s:
            return
        self._noted_at = time.monotonic()
        times = {"started_at": self._started_at, "seen_at": time.time()}
        name = f"{self._allocation.restart_id}-{self._allocation.node}"
        self._run.note_worker(self._instance, name, **self._held, **times)

    def _is_for_nothing(self, waited_s: float) -> bool:
        """Whether there never was a head: Slurm lets us start when it is cancelled, too.

        It comes after the jobs of the stages that this one needs.
        """
        return waited_s > self._patience_s and not self._store.has(*self._needed)

    def _join(self, head: RayHead | None) -> None:
        """Be part of the session of this head, and of no other."""
        if self._node and (head != self._joined or not self._node.is_alive()):
            log.info("the head has moved or ended")
            self._leave()
            self._not_before = time.monotonic() + _REJOIN_DELAY_S * (head == self._joined)
        if self._node is None and head and time.monotonic() >= self._not_before:
            log.info("joins %s", head.address)
            resources, allocation = self._resources, self._allocation
            name = f"ray-{allocation.node}.log"
            self._node = RayNode(
                head,
                address=address_towards(host_of(head.address)),
                num_cpus=resources.workers_per_node * resources.cpus_per_worker,
                num_gpus=resources.gpus_per_node,
                log=Path(self._run.allocation(self._instance, allocation.restart_id).url, name),
                code_env={**code_env(self._run), NODE_NAME: allocation.node},
            )
            self._joined = head

    def _leave(self) -> None:
        if self._node:
            self._node.stop()
        self._node = None


def host_of(address: str) -> str:
    """The host of ``host:port`` or ``[host]:port``."""
    return address.rpartition(":")[0].strip("[]")


def answers(address: str) -> bool:
    """Whether somebody listens at ``host:port``."""
    port = int(address.rpartition(":")[2])
    try:
        with socket.create_connection((host_of(address), port), timeout=_ANSWER_TIMEOUT_S):
            return True
    except OSError:
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """Be a worker of one stage for as long as it is wanted."""
    parser = run_parser(__doc__)
    parser.add_argument("--instance", required=True, help="stage instance")
    options = parser.parse_args(argv)
    store, run = store_and_run(options)
    log_to_stderr()
    worker = Worker(store, run, options.instance, Allocation.current())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, worker.warn)
    return worker.work()


if __name__ == "__main__":
    sys.exit(main())
