"""Which numbers of nodes a training may have; that it gets them needs an autoscaler (a drill)."""

from __future__ import annotations

import pytest

from jobs.training.placement import largest_of, selectors
from orchestrator.errors import RunFailedError
from orchestrator.spec.cluster import Resources


@pytest.mark.parametrize(("there", "takes"), [(9, 4), (4, 4), (3, 3), (2, None)])
def test_of_the_nodes_that_were_given_as_many_as_divide_the_batch(
    there: int, takes: int | None
) -> None:
    sizes = [Resources(nodes=nodes) for nodes in (4, 3)]
    if takes:
        assert largest_of(sizes, there).max_nodes == takes
    else:
        with pytest.raises(RunFailedError, match=r"2 nodes are too few: .*, 3 is the least"):
            largest_of(sizes, there)


def test_the_ranks_of_the_first_node_have_labels_of_their_own() -> None:
    size = Resources.model_validate({"nodes": 3, "ranks_per_node": 2})
    first, other = {"type": "in(kept)"}, {"type": "in(kept,spot)"}
    assert selectors(size, first, other) == (first, first, other, other, other, other)
    assert selectors(size, {}, {}) == ()
    assert selectors(size, first, {}) == (first, first, {}, {}, {}, {})
