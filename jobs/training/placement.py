"""Nodes for the ranks of a training, where they come as they are asked for.

An attempt has one number of nodes from its begin to its end: of those that divide the global batch
the most that are there. While it has fewer than it may have, room for the next size stays asked
for, which an autoscaler acts upon; once it is there, the attempt saves and makes way for another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jobs.attempt import Attempt
from jobs.awaited import Awaited, awaited
from jobs.ray_session import session
from jobs.training.ray_train import per_rank
from orchestrator.errors import RequestError
from orchestrator.spec.cluster import Resources

Grows = Callable[[], bool]
_LOOK_EVERY_S = 1.0


@contextmanager
def placed(attempt: Attempt, split: Callable[[int], object]) -> Iterator[Grows]:
    """Give the attempt the nodes that there are; whether there is room for more of them now.

    ``split`` raises RequestError for a number of ranks that cannot share a batch. Other clusters
    are as large as they are. Raises RunFailedError when no nodes come in time.
    """
    if not attempt.cluster.nodes_come_and_go:
        yield lambda: False
        return
    sizes = dividing(attempt.resources.sizes, split)
    wait_s, selector = (
        attempt.cluster.retry.resize_wait_s,
        attempt.cluster.node_selector("training"),
    )
    with session(attempt.ray_address, num_cpus=0, log_to_driver=False):
        number = await_room(sizes, awaited(attempt), wait_s, selector)
        attempt.resources = sizes[number]
        if len(sizes) > 1:
            attempt.event("placed", nodes=attempt.resources.max_nodes)
        more = More(sizes, number, selector)
        try:
            yield more.is_there
        finally:
            more.leave()


def dividing(sizes: Sequence[Resources], split: Callable[[int], object]) -> tuple[Resources, ...]:
    """Those whose ranks can share a batch. Raises RequestError when none can."""
    found, refused = [], None
    for size in sizes:
        try:
            split(size.world_size)
            found.append(size)
        except RequestError as error:
            refused = refused or error
    if refused and not found:
        raise refused
    return tuple(found)


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

    def leave(self) -> None:
        """Ask for it no more, and give it to whoever asks next."""
        import ray

        for group in self._groups:
            ray.util.remove_placement_group(group)


def await_room(
    sizes: Sequence[Resources], awaited: Awaited, wait_s: float, selector: Mapping[str, str]
) -> int:
    """Which of the sizes, largest first, has room: at first the largest, after a while any.

    Ray Train gives up soon where nodes must be started first, and does not say why there are none.
    Raises RunFailedError when none has any in time.
    """
    began, largest = time.monotonic(), sizes[0]
    room = Room(largest, largest.max_nodes, selector)
    try:
        while (there := room.nodes_there()) < largest.max_nodes:
            missing = (largest.max_nodes - there) * largest.local_world_size
            awaited.look(missing, is_held_up=there < sizes[-1].max_nodes)
            fits = [n for n, size in enumerate(sizes) if size.max_nodes <= there]
            if fits and time.monotonic() - began > wait_s:
                break
            time.sleep(_LOOK_EVERY_S)
        else:
            fits = [0]
        awaited.look(0, is_held_up=False)  # nothing waits any more
        return fits[0]
    finally:
        room.leave()  # for that of Ray Train
