"""Nodes for the ranks of a training, where they come as they are asked for, or as many as are free.

An attempt has one number of nodes from its begin to its end: of those that divide the global batch
the most that are there. While it has fewer than it may have, room for the next size stays asked
for, which an autoscaler acts upon; once it is there, the attempt saves and makes way for another.
Rank 0 has a node that no cloud takes back, where there is one: without it the others cannot go on.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jobs import ray_nodes
from jobs.attempt import Attempt
from jobs.awaited import Awaited, awaited
from jobs.ray_session import session
from jobs.training.ray_train import per_rank
from orchestrator.errors import Cause, RunFailedError
from orchestrator.ledger.run import ALLOCATION_NODES
from orchestrator.plan.execution import dividing
from orchestrator.spec.cluster import NODE_GROUP, Resources, of_types

_LOOK_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the ranks of an attempt are."""

    grows: Callable[[], bool] = lambda: False
    """Whether there is room for more of them now."""
    selectors: tuple[Mapping[str, str], ...] = ()
    """Labels of the nodes that each may be on, by rank, as Ray selects by them; empty for any."""


@contextmanager
def placed(attempt: Attempt, split: Callable[[int], object]) -> Iterator[Place]:
    """Give the attempt the nodes that there are.

    ``split`` raises RequestError for a number of ranks that cannot share a batch. Raises
    RunFailedError when no nodes come in time.
    """
    cluster, is_range = attempt.cluster, len(attempt.resources.sizes) > 1
    if not cluster.nodes_come_and_go:
        if is_range:
            attempt.resources = largest_of(
                dividing(attempt.resources.sizes, split), int(os.environ[ALLOCATION_NODES])
            )
            attempt.event("placed", nodes=attempt.resources.max_nodes)
        yield Place()
        return
    sizes, any_of = dividing(attempt.resources.sizes, split), cluster.node_selector("training")
    with session(attempt.ray_address, num_cpus=0, log_to_driver=False):
        room = Room(sizes[0], sizes[0].max_nodes, any_of)
        try:
            wait_s, note = cluster.retry.resize_wait_s, attempt.record.note_nodes
            number = await_room(room, sizes, awaited(attempt), wait_s, note)
            size, kept = sizes[number], cluster.on_demand_types
            first = of_types(kept) if has_room(kept, size, room.ranks_held()) else any_of
        finally:
            room.leave()  # for that of Ray Train
        attempt.resources = size
        if is_range:
            attempt.event("placed", nodes=size.max_nodes)
        more = More(sizes, number, any_of)
        try:
            yield Place(grows=more.is_there, selectors=selectors(size, first, any_of))
        finally:
            more.leave()


def largest_of(sizes: Sequence[Resources], num_nodes: int) -> Resources:
    """The largest that so many nodes have room for; ``sizes``: the largest first.

    Raises RunFailedError when they are too few for any.
    """
    if found := next((size for size in sizes if size.max_nodes <= num_nodes), None):
        return found
    raise RunFailedError(
        f"{num_nodes} nodes are too few: of those that it may have, {sizes[-1].max_nodes} is the "
        "least that divides the global batch; raise nodes.min to that",
        cause=Cause.BAD_REQUEST,
    )


def selectors(
    size: Resources, first: Mapping[str, str], any_of: Mapping[str, str]
) -> tuple[Mapping[str, str], ...]:
    """Labels by rank: those of the first node, and those of all others."""
    if not (first or any_of):
        return ()
    here = size.local_world_size
    return (*[first] * here, *[any_of] * (size.world_size - here))


def has_room(types: Collection[str], size: Resources, held: Mapping[str, int]) -> bool:
    """Whether a node of these types has room for a node's ranks.

    ``held``: how many ranks each node has room for that is held for them.
    """
    from ray._private.state import available_resources_per_node

    ids = [
        n["NodeID"]
        for n in ray_nodes.nodes()
        if n["Alive"] and n["Labels"].get(NODE_GROUP) in types
    ]
    free: dict[str, dict[str, float]]
    free = available_resources_per_node()  # type: ignore[no-untyped-call]  # Ray has no types
    needed = per_rank(size)

    def num_ranks(node: str) -> float:
        fits = (free.get(node, {}).get(name, 0.0) // amount for name, amount in needed.items())
        return held.get(node, 0) + min(fits)

    return any(num_ranks(node) >= size.local_world_size for node in ids)


class More:
    """Room for the nodes that the next larger size has more, asked for once the ranks are at work.

    Asked for sooner, it would be found on the nodes that they are about to take.
    """

    def __init__(
        self, sizes: Sequence[Resources], number: int, selector: Mapping[str, str]
    ) -> None:
        self._sizes, self._number, self._selector = sizes, number, selector
        self._room: Room | None = None

    def is_there(self) -> bool:
        """Whether nodes have it; the first call asks for it."""
        if self._number == 0:
            return False
        if self._room is None:
            size = self._sizes[self._number - 1]
            nodes = size.max_nodes - self._sizes[self._number].max_nodes
            self._room = Room(size, nodes, self._selector)
        return self._room.is_there()

    def leave(self) -> None:
        """Give it to whoever asks next."""
        if self._room:
            self._room.leave()


class Room:
    """Room for the ranks of some nodes on this process's Ray cluster, asked for and held.

    Each node's is held as it comes: one that waited for the others would be idle, and ended.
    """

    def __init__(self, size: Resources, nodes: int, selector: Mapping[str, str]) -> None:
        import ray

        ranks = [per_rank(size)] * size.local_world_size
        self._groups: list[Any] = [
            ray.util.placement_group(
                [dict(rank) for rank in ranks],
                bundle_label_selector=[dict(selector)] * len(ranks) if selector else None,
            )
            for _ in range(nodes)
        ]

    def nodes_there(self) -> int:
        """How many nodes have it."""
        import ray

        states = [ray.util.placement_group_table(group)["state"] for group in self._groups]
        return states.count("CREATED")

    def is_there(self) -> bool:
        """Whether all have it."""
        return self.nodes_there() == len(self._groups)

    def ranks_held(self) -> Counter[str]:
        """How many ranks there is room for on each node, by its id."""
        import ray

        tables = [ray.util.placement_group_table(group) for group in self._groups]
        there = (table for table in tables if table["state"] == "CREATED")
        return Counter(node for table in there for node in table["bundles_to_node_id"].values())

    def leave(self) -> None:
        """Ask for it no more, and give it to whoever asks next."""
        import ray

        for group in self._groups:
            ray.util.remove_placement_group(group)


def await_room(
    room: Room,
    sizes: Sequence[Resources],
    awaited: Awaited,
    wait_s: float,
    note: Callable[[int], None],
) -> int:
    """Which of the sizes, largest first, has room: at first the largest, after a while any.

    ``room``: for the largest. ``note`` is told how many nodes are there, and at the end how many
    stay. Ray Train gives up soon where nodes must be started first, and does not say why there are
    none. Raises RunFailedError when no size has any in time; OSError.
    """
    began, largest, noted = time.monotonic(), sizes[0], 0
    while (there := room.nodes_there()) < largest.max_nodes:
        if there != noted:
            note(noted := there)
        missing = (largest.max_nodes - there) * largest.local_world_size
        awaited.look(missing, is_held_up=there < sizes[-1].max_nodes)
        fits = [n for n, size in enumerate(sizes) if size.max_nodes <= there]
        if fits and time.monotonic() - began > wait_s:
            break
        time.sleep(_LOOK_EVERY_S)
    else:
        fits = [0]
    note(sizes[fits[0]].max_nodes)
    awaited.look(0, is_held_up=False)  # nothing waits any more
    return fits[0]
