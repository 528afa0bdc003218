"""Nodes for the ranks of a training, where they come as they are asked for.

An attempt has one number of nodes from its begin to its end: of those that divide the global batch
the most that are there. While it has fewer than it may have, room for the next size stays asked
for, which an autoscaler acts upon; once it is there, the attempt saves and makes way for another.
"""

from __future__ import annotations

import logging
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
_TRY_S = 10.0
"""How long Ray gets to say that a smaller number of ranks has room."""

log = logging.getLogger(__name__)


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
        larger = Room(_missing(sizes, number), selector) if number else None
        try:
            yield lambda: larger is not None and larger.is_there()
        finally:
            if larger:
                larger.leave()


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


class Room:
    """Room for ranks on this process's Ray cluster, asked for and held."""

    def __init__(self, ranks: Sequence[Mapping[str, float]], selector: Mapping[str, str]) -> None:
        import ray

        self._group: Any = ray.util.placement_group(
            [dict(rank) for rank in ranks],
            bundle_label_selector=[dict(selector)] * len(ranks) if selector else None,
        )

    def is_there(self, within_s: float = 0.0) -> bool:
        """Whether nodes have it."""
        return bool(self._group.wait(timeout_seconds=within_s))

    def leave(self) -> None:
        """Ask for it no more, and give it to whoever asks next."""
        import ray

        ray.util.remove_placement_group(self._group)


def await_room(
    sizes: Sequence[Resources], awaited: Awaited, wait_s: float, selector: Mapping[str, str]
) -> int:
    """Which of the sizes, largest first, has room: at first the largest, after a while any.

    Ray Train gives up soon where nodes must be started first, and does not say why there are none.
    Raises RunFailedError when none has any in time.
    """
    began = time.monotonic()
    largest = Room(_ranks(sizes[0]), selector)
    try:
        while not largest.is_there(1.0):
            awaited.look(sizes[0].world_size, is_held_up=True)
            if time.monotonic() - began < wait_s or len(sizes) == 1:
                continue
            largest.leave()  # it may hold what a smaller one needs
            for number, size in enumerate(sizes[1:], 1):
                if _has_room(size, selector):
                    awaited.look(0, is_held_up=False)
                    return number
            largest, began = Room(_ranks(sizes[0]), selector), time.monotonic()
        awaited.look(0, is_held_up=False)
        return 0
    finally:
        largest.leave()  # for that of Ray Train


def _has_room(size: Resources, selector: Mapping[str, str]) -> bool:
    room = Room(_ranks(size), selector)
    try:
        return room.is_there(_TRY_S)
    finally:
        room.leave()


def _ranks(resources: Resources) -> list[dict[str, float]]:
    return [per_rank(resources)] * resources.world_size


def _missing(sizes: Sequence[Resources], number: int) -> list[dict[str, float]]:
    """The ranks that the next larger size has more."""
    return _ranks(sizes[number - 1])[sizes[number].world_size :]
