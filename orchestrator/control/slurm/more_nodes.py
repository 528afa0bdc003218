"""Whether a training that was given fewer nodes than it may have could have more of them now.

A job keeps the nodes that it was started with, so that it goes back into the queue for others: it
has saved by then, and does no step twice. Meanwhile anybody may take them, so that it goes only
where enough nodes are idle and nobody waits for any, and less and less often where that was in
vain.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.backends.base import Job
from orchestrator.backends.slurm import SlurmBackend, job_options
from orchestrator.backends.slurm_allocation import Allocation
from orchestrator.backends.slurm_commands import ask
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage, to_json
from orchestrator.plan.execution import dividing, splits_of
from orchestrator.plan.planner import Instance
from orchestrator.plan.stages import BY_NAME
from orchestrator.spec.cluster import Cluster
from orchestrator.spec.recipe import Recipe

ASKED = "more-nodes.json"
"""In an allocation's folder: that the job made way for more nodes, and how often it has in a row
without having come back larger, this time included."""
_LOOK_EVERY_S = 2.0

log = logging.getLogger(__name__)


def sizes_of(cluster: Cluster, recipe: Recipe, instance: Instance) -> tuple[int, ...]:
    """The numbers of nodes that a stage may have, largest first; none where there is no choice."""
    resources = cluster.resources_of(instance.stage, instance.node)
    if len(resources.sizes) == 1 or not BY_NAME[instance.stage].has_ranks:
        return ()
    splits = splits_of(recipe, cluster.resources_of("train"))
    return tuple(size.max_nodes for size in dividing(resources.sizes, splits[instance.stage]))


def idle_nodes(partition: str, *, is_reserved: bool = False) -> tuple[int, tuple[str, ...]]:
    """How many nodes of a partition nobody has or is about to have, and the names of all others.

    Not those that are drained, reserved, completing, powered down, or planned for a job that
    waits. ``is_reserved``: for a job in a reservation, whose nodes are called so while they are
    idle. Raises BackendError.
    """
    words = ("--noheader", f"--partition={partition}", "--format=%T|%D|%N")
    rows = [row for ln in ask("sinfo", *words).splitlines() if len(row := ln.split("|")) == 3]
    free = "reserved" if is_reserved else "idle"
    idle = sum(int(number) for state, number, _ in rows if state == free)
    return idle, tuple(names.strip() for state, _, names in rows if state != free)


def has_room(backend: SlurmBackend, job: Job, partition: str, num_nodes: int) -> bool:
    """Whether a job would be given so many idle nodes besides its own, which nobody waits for.

    Raises BackendError.
    """
    options = job_options(job)
    is_reserved = options.sbatch.reservation is not None
    idle, others = idle_nodes(partition, is_reserved=is_reserved)
    if idle < num_nodes or backend.is_waited_for(partition):
        return False
    chosen = {"partition": partition, "exclude": (*options.sbatch.exclude, *others)}
    sbatch = options.sbatch.model_copy(update=chosen)
    shape = replace(job.shape, num_nodes=num_nodes, min_nodes=None)
    more = replace(job, shape=shape, options=replace(options, sbatch=sbatch))
    # Not when it would start: to that Slurm adds for whatever waits, dependent jobs of ours too.
    return not backend.refusal(more)


def tries_in_vain(run: RunFolder, instance: str, allocation: Allocation) -> int:
    """How often in a row a job has made way for more nodes and come back no larger."""
    for number in reversed(range(allocation.restarts)):
        before = run.allocation(instance, f"{allocation.job_id}-{number}")
        if asked := before.find_json(ASKED):
            return int(asked["tries"]) if allocation.num_nodes <= asked["had"] else 0
    return 0


@dataclass(kw_only=True)
class MoreNodes:
    """Looks for them when a checkpoint has been committed, after as long as one may wait."""

    held: int
    """Nodes that the job has."""
    sizes: Sequence[int] = ()
    """Numbers of nodes that it may have, largest first."""
    tries: int = 0
    """How often it has made way in vain."""
    wait_s: float
    """Time from its start to the first look, and between looks, before any try in vain."""
    has_room: Callable[[int], bool]
    """Whether the scheduler would give so many nodes more."""
    saved_step: Callable[[], float]
    """The step of the newest checkpoint."""
    note: Storage
    """The folder of this start of the job."""
    clock: Callable[[], float] = time.monotonic
    _due: float = field(init=False)
    _step: float | None = None
    """What was saved when it was due."""

    def __post_init__(self) -> None:
        self._postpone()

    def are_there(self) -> bool:
        """Whether the training should make way for a larger one, which is then noted."""
        larger = [size for size in self.sizes if size > self.held]
        if not larger or self.clock() < self._due:
            return False
        self._due = self.clock() + _LOOK_EVERY_S
        before, self._step = self._step, self.saved_step()
        if before is None or self._step <= before:
            return False
        self._postpone()
        size = next((size for size in larger if self.has_room(size - self.held)), 0)
        if size:
            log.info("%d nodes are there for its %d: saves and asks for them", size, self.held)
            self.note.replace(ASKED, to_json({"had": self.held, "tries": self.tries + 1}))
        return bool(size)

    def _postpone(self) -> None:
        self._due, self._step = self.clock() + self.wait_s * 2**self.tries, None
