"""A pool of Ray actors that pull work: which actor gets which item, and what a death costs.

The driver hands the next item to whichever actor is free, so slow nodes, late nodes and lost nodes
need no planning. Ray restarts nothing: a dead actor is replaced here, within a budget that progress
refills, and its item is given again. An item that takes two actors down with it, on nodes that live
on, is named and ends the stage. One whose node ran out of memory is replaced once; from then on the
pool is one smaller each time, and grows again as items are finished. A node on which actors die, or
whose accelerator does not answer, while those on others go on is named to whoever chooses nodes.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Self, TypeVar

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from jobs.attempt import Attempt
from jobs.awaited import Awaited, awaited
from jobs.ray_nodes import DrainingNodes, dead_nodes
from jobs.ray_session import session
from jobs.speech.node_memory import whose_memory
from orchestrator.errors import Cause, OrchestratorError, RunFailedError
from orchestrator.ledger.attempt import NODE_NAME
from orchestrator.spec.cluster import Resources

Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")

log = logging.getLogger(__name__)

_MAX_DEATHS_OF_ITEM = 2
_MAX_DEATHS_IN_ALL = 5
_MAX_DEATHS_OF_NODE = 2
_DEVICE_FAULT = re.compile(
    r"CUDA (driver )?(error|initialization)|no CUDA-capable device|NVML|NVIDIA driver|HIP error|"
    r"ECC error|cuDNN error: CUDNN_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR)"
)
"""What torch says of an accelerator that is broken or gone."""
_REGAINED_BY_ITEM = 0.05
"""Workers that a pool which ran out of memory may have more, for each item that was finished."""


class DeviceFaultError(Exception):
    """A worker whose node's accelerator does not do what it is told, or gives no numbers."""

    def __init__(self, problem: str, node_id: str, node: str) -> None:
        super().__init__(problem, node_id, node)
        self.problem, self.node_id, self.node = problem, node_id, node

    def __str__(self) -> str:
        return f"{self.node or self.node_id}: {self.problem}"


_DEATHS = (RayActorError, OutOfMemoryError, DeviceFaultError)
"""How Ray tells that an actor is no more, and how an actor tells that it is of no use."""
_POLL_S = 1.0
IDLE_LEAVES_S = 30.0
"""Longer than other workers take for the rest of a run after which there is another."""


Worker = Callable[[Any], Any]
"""What an actor does: the result of one item. It is built in the actor, by a class of a module."""


@contextmanager
def stage_pool(attempt: Attempt, worker: Callable[..., Worker], *args: Any) -> Iterator[Pool]:
    """The workers of a data stage, in the run's Ray session."""
    size = attempt.resources
    num_cpus = size.max_workers * size.cpus_per_worker
    note = attempt.record.note_failing_node
    pool = Pool(
        worker,
        *args,
        size=size,
        on_failing_node=note,
        awaited=awaited(attempt),
        selector=attempt.cluster.node_selector("data"),
    )
    with session(attempt.ray_address, num_cpus), pool:
        yield pool


class Pool:
    """Actors that live across several runs over items; a context manager, which ends them.

    Those without a place on a node stay pending: an autoscaler's cue for more. Those without
    anything to do leave, so that it may end nodes; those of a node that is about to go are
    replaced at once. A pool with fewer living actors than ``min_workers`` and no budget left fails.
    """

    def __init__(
        self,
        worker: Callable[..., Worker],
        *args: Any,
        size: Resources,
        on_failing_node: Callable[[str], None] = lambda _: None,
        awaited: Awaited | None = None,
        selector: Mapping[str, str] | None = None,
        idle_leaves_s: float = IDLE_LEAVES_S,
    ) -> None:
        """``on_failing_node`` is told, by the scheduler's name, where actors die alone.

        ``awaited``: how those are waited for that have no place on a node. ``selector``: labels
        of the nodes that they may be on, as Ray selects by them; all when absent.
        ``idle_leaves_s``: for how long there may be more of them than items left to do.
        """
        self._size = size
        self._nodes_used = NodesUsed(on_failing_node)
        self._awaited = awaited or Awaited("pool")
        self._draining = DrainingNodes()
        self._idle_leaves_s, self._surplus_since = idle_leaves_s, time.monotonic()
        actor_class: Any = ray.remote(_Host)
        self._actor_class = actor_class.options(
            num_cpus=size.cpus_per_worker,
            num_gpus=size.gpus_per_worker if size.gpus_per_node else 0.0,
            max_restarts=0,
            max_task_retries=0,
            label_selector=dict(selector or {}),
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(size.cpus_per_worker)}},
        )
        self._worker = (worker, args)
        self._starting: dict[ray.ObjectRef[Any], ActorHandle[Any]] = {}
        self._free: list[ActorHandle[Any]] = []
        self._nodes: dict[ActorHandle[Any], str] = {}
        self._actor_of: dict[Hashable, ActorHandle[Any]] = {}
        """The actor that did an item last."""
        self._queue: deque[Any] = deque()
        self._running: dict[ray.ObjectRef[Any], tuple[Any, ActorHandle[Any]]] = {}
        self._deaths: dict[Hashable, list[str]] = {}
        """Nodes of the workers that an item of this run has taken down with it."""
        self.deaths_in_row = 0
        self._most = float(size.max_workers)
        """Workers that the nodes' memory allows."""
        self._out_of_memory = ""
        """Whose memory it was, when a worker last died of it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in [*self._starting.values(), *self._free, *self._nodes]:
            _kill(actor)

    def run(
        self,
        items: Iterable[Item],
        payload: Callable[[Item], Any],
        *,
        sticky: bool = False,
        tick: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[Item, Any]]:
        """``(item, result)`` as they are completed, in no particular order; one run at a time.

        ``payload`` makes what the worker is called with, at the moment the item is given away.
        ``sticky`` gives an item to the actor that did it last, if that one lives: for workers that
        keep what they made. ``tick`` is called about once a second. Raises RunFailedError when an
        item or the whole pool keeps dying, and what the worker raised.
        """
        self._queue, self._deaths = deque(items), {}
        try:
            while self._queue or self._running:
                tick()
                self._recruit()
                self._assign(payload, sticky=sticky)
                self._let_go(keep=sticky)
                is_held_up = len(self._nodes) < self._size.min_workers
                self._awaited.look(len(self._starting), is_held_up=is_held_up)
                yield from self._collect()
        finally:
            for _, actor in self._running.values():  # nobody will take their results
                self._forget(actor)
                _kill(actor)
            self._running = {}

    def _recruit(self) -> None:
        """Ask for actors up to what the items and the size allow."""
        leaving = sum(node in self._draining.ids() for node in self._nodes.values())
        alive = len(self._nodes) - leaving + len(self._starting)
        exhausted = self.deaths_in_row > 2 * self._size.max_workers + 2
        if exhausted and alive < self._size.min_workers:
            raise RunFailedError(
                f"pool: {self.deaths_in_row} workers died in a row without finishing anything; "
                + (self._out_of_memory or "look in their logs for the first error"),
                cause=Cause.HOST_OOM if self._out_of_memory else None,
            )
        unfinished = len(self._queue) + len(self._running)
        most = max(1, int(self._most))
        wanted = min(most, max(unfinished, self._size.min_workers))
        for _ in range(0 if exhausted else wanted - alive):
            actor = self._actor_class.remote(*self._worker)
            self._starting[actor.start.remote(self._size.cpus_per_worker)] = actor

    def _let_go(self, *, keep: bool) -> None:
        """End who has not been needed for a while, so that nodes go idle or never come at all.

        Those of a node that is about to go leave it as soon as they have nothing to do.
        """
        for actor in [a for a in self._free if self._nodes[a] in self._draining.ids()]:
            self._dismiss(actor)
        needed = max(len(self._queue) + len(self._running), self._size.min_workers)
        surplus = len(self._nodes) + len(self._starting) - needed
        now = time.monotonic()
        if keep or surplus <= 0:
            self._surplus_since = now
        if now - self._surplus_since <= self._idle_leaves_s:
            return
        for ref, actor in tuple(self._starting.items())[::-1][:surplus]:  # the latest first
            del self._starting[ref]
            surplus -= 1
            _kill(actor)
        for actor in tuple(self._free)[:surplus]:
            self._dismiss(actor)

    def _dismiss(self, actor: ActorHandle[Any]) -> None:
        """End an actor that has nothing to do."""
        self._free.remove(actor)
        self._forget(actor)
        _kill(actor)

    def _assign(self, payload: Callable[[Any], Any], *, sticky: bool) -> None:
        """Give every free actor an item, as far as there is one for it."""
        for actor in tuple(self._free):
            if self._nodes[actor] in self._draining.ids():
                continue
            item = self._next_for(actor, sticky=sticky)
            if item is None:
                continue
            self._free.remove(actor)
            if sticky:
                self._actor_of[item] = actor
            self._running[actor.work.remote(payload(item))] = (item, actor)

    def _next_for(self, actor: ActorHandle[Any], *, sticky: bool) -> Any:
        for position, item in enumerate(self._queue):
            if not sticky or self._actor_of.get(item, actor) == actor:
                del self._queue[position]
                return item
        return None

    def _collect(self) -> Iterator[tuple[Any, Any]]:
        """Wait a moment for actors that started and items that were completed."""
        waiting = [*self._running, *self._starting]
        ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        if not ready:
            ready, _ = ray.wait(waiting, num_returns=1, timeout=_POLL_S)
        for ref in ready:
            if ref in self._starting:
                self._started(ref)
            else:
                yield from self._finished(ref)

    def _started(self, ref: ray.ObjectRef[Any]) -> None:
        """Take in an actor that has started, or count its death."""
        actor = self._starting.pop(ref)
        try:
            self._nodes[actor], name = _result(ref)
            self._nodes_used.name(self._nodes[actor], name)
        except _DEATHS as error:
            self._remove_dead(actor, error)
        else:
            self._free.append(actor)

    def _finished(self, ref: ray.ObjectRef[Any]) -> Iterator[tuple[Any, Any]]:
        item, actor = self._running[ref]
        try:
            result = _result(ref)
        except _DEATHS as error:
            del self._running[ref]
            self._blame(item, actor, error)
            self._remove_dead(actor, error)
            self._queue.appendleft(item)
            return
        del self._running[ref]
        self._free.append(actor)
        self._nodes_used.finished(self._nodes[actor])
        self.deaths_in_row = 0
        self._most = min(self._most + _REGAINED_BY_ITEM, self._size.max_workers)
        yield item, result

    def _blame(self, item: Hashable, actor: ActorHandle[Any], error: Exception) -> None:
        """Count the death against the item, unless its node or others on it were the cause."""
        of_memory = isinstance(error, OutOfMemoryError)
        if of_memory and len(self._nodes) > 1:  # those beside it may have had more
            return
        deaths = self._deaths.setdefault(item, [])
        deaths += [self._nodes[actor]] if self._nodes[actor] not in dead_nodes() else []
        # Where there are others, it is a node's fault until another node has seen the same.
        seen = set(deaths) if len(set(self._nodes.values())) > 1 else deaths
        if len(seen) >= _MAX_DEATHS_OF_ITEM + of_memory or len(deaths) > _MAX_DEATHS_IN_ALL:
            raise RunFailedError(
                f"pool: item {item} killed {len(deaths)} workers ({_how(error)}); "
                "look at its audio, and at the memory of the workers' nodes",
                cause=Cause.HOST_OOM if of_memory else None,
            ) from None

    def _remove_dead(self, actor: ActorHandle[Any], error: Exception) -> None:
        """Forget an actor that died, and count its death."""
        log.warning("a worker died: %s", _how(error))
        # Nodes are taken away at any time; only deaths on nodes that live on tell of the work.
        self.deaths_in_row += self._nodes.get(actor) not in dead_nodes()
        if isinstance(error, DeviceFaultError):
            self._nodes_used.name(error.node_id, error.node)
            self._nodes_used.died(error.node_id)
            _kill(actor)
        elif isinstance(error, RayActorError) and self._nodes.get(actor) not in dead_nodes():
            self._nodes_used.died(self._nodes.get(actor, ""))
        self._forget(actor)
        if isinstance(error, OutOfMemoryError):
            if self._out_of_memory not in ("", _how(error)):  # Ray may end several at once
                self._shrink()
            self._out_of_memory = _how(error)

    def _shrink(self) -> None:
        """Leave the place of the worker that died empty, and call off those that would take it."""
        self._most = max(1.0, float(len(self._nodes)))
        kept = 0 if self._nodes else 1
        for ref, actor in tuple(self._starting.items())[kept:]:
            del self._starting[ref]
            _kill(actor)
        log.warning("memory ran out again; going on with %d workers at most", self._most)

    def _forget(self, actor: ActorHandle[Any]) -> None:
        """Expect nothing of this actor any more."""
        self._nodes.pop(actor, None)
        self._actor_of = {i: held_by for i, held_by in self._actor_of.items() if held_by != actor}


class NodesUsed:
    """On which nodes of a pool work is finished, and on which its actors only die."""

    def __init__(self, on_failing: Callable[[str], None]) -> None:
        self._on_failing = on_failing
        self._names: dict[str, str] = {}
        self._useful: set[str] = set()
        self._deaths: Counter[str] = Counter()
        """Deaths since something was finished there."""

    def name(self, node_id: str, name: str) -> None:
        """Note the scheduler's name of a node; empty where it has none."""
        self._names[node_id] = name

    def finished(self, node_id: str) -> None:
        """Note that an item was finished there."""
        self._useful.add(node_id)
        self._deaths[node_id] = 0

    def died(self, node_id: str) -> None:
        """Note that an actor died there; tell of the node when that is only so there."""
        self._deaths[node_id] += 1
        name = self._names.get(node_id, "")
        works_elsewhere = any(not self._deaths[other] for other in self._useful - {node_id})
        if name and works_elsewhere and self._deaths[node_id] >= _MAX_DEATHS_OF_NODE:
            log.warning("workers die on %s and go on elsewhere", name)
            self._on_failing(name)


class _Host:
    """The actor: sets its threads, then hands each payload to its worker."""

    def __init__(self, worker: Callable[..., Worker], args: tuple[Any, ...]) -> None:
        self._build = lambda: worker(*args)

    def start(self, num_threads: int) -> tuple[str, str]:
        """Build the worker; the id of the node it is on, and the scheduler's name of that."""
        torch.set_num_threads(num_threads)
        os.environ["OMP_NUM_THREADS"] = str(num_threads)
        self._worker = _picklable(self._build)
        return _here()

    def work(self, payload: Any) -> Any:
        """The worker's result."""
        return _picklable(lambda: self._worker(payload))


def _picklable(act: Callable[[], Result]) -> Result:
    """What ``act`` returns; our errors as one that can be pickled, with their cause."""
    try:
        return act()
    except OrchestratorError as error:
        raise RunFailedError(str(error), cause=error.cause) from None
    except RuntimeError as error:
        if _DEVICE_FAULT.search(str(error)):
            raise DeviceFaultError(str(error).splitlines()[0], *_here()) from None
        raise
    except FloatingPointError as error:
        raise DeviceFaultError(str(error), *_here()) from None


def _here() -> tuple[str, str]:
    """This node's id in the Ray cluster, and the scheduler's name of it."""
    return ray.get_runtime_context().get_node_id(), os.environ.get(NODE_NAME, "")


def _kill(actor: ActorHandle[Any]) -> None:
    """End an actor; that of a session that went away is gone with it."""
    with suppress(RayError):
        ray.kill(actor)


def _how(error: Exception) -> str:
    """How a worker died, in one line."""
    return whose_memory(str(error))


def _result(ref: ray.ObjectRef[Any]) -> Any:
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, OrchestratorError | DeviceFaultError):
            raise error.cause from None
        raise
