"""Which numbers of nodes a training may have; that it gets them needs an autoscaler (a drill)."""

from __future__ import annotations

import pytest

from jobs.training.placement import dividing, selectors
from orchestrator.errors import RequestError
from orchestrator.spec.cluster import Resources


def of_twelve(world_size: int) -> int:
    if 12 % world_size:
        raise RequestError(f"{world_size} ranks cannot share 12")
    return 12 // world_size


@pytest.mark.parametrize(
    ("nodes", "ranks", "found"),
    [
        ({"min": 1, "max": 6}, 1, [6, 4, 3, 2, 1]),
        ({"min": 2, "max": 5}, 1, [4, 3, 2]),
        ({"min": 1, "max": 4}, 2, [6, 4, 2]),
        ({"min": 2, "max": 2}, 1, [2]),
        (3, 2, [6]),
    ],
)
def test_the_sizes_are_those_that_divide_the_batch(
    nodes: object, ranks: int, found: list[int]
) -> None:
    resources = Resources.model_validate({"nodes": nodes, "ranks_per_node": ranks})
    assert [size.world_size for size in dividing(resources.sizes, of_twelve)] == found


def test_where_none_divides_the_largest_is_the_fault() -> None:
    resources = Resources.model_validate({"nodes": {"min": 7, "max": 8}})
    with pytest.raises(RequestError, match="8 ranks cannot share 12"):
        dividing(resources.sizes, of_twelve)


def test_the_ranks_of_the_first_node_have_labels_of_their_own() -> None:
    size = Resources.model_validate({"nodes": 3, "ranks_per_node": 2})
    first, other = {"type": "in(kept)"}, {"type": "in(kept,spot)"}
    assert selectors(size, first, other) == (first, first, other, other, other, other)
    assert selectors(size, {}, {}) == ()
    assert selectors(size, first, {}) == (first, first, {}, {}, {}, {})
