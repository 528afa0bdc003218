"""Who stands where on several nodes, and who is to blame when ranks end."""

from __future__ import annotations

import pytest

from jobs.training.process_ranks import Launch, Report, interface_towards

LAUNCH = Launch(config="{}", host="10.0.0.1", port=1234, num_nodes=3, ranks_per_node=2)


def test_ranks_are_numbered_node_by_node() -> None:
    places = [LAUNCH.rank_info(node, local) for node in range(3) for local in range(2)]
    assert [p.rank for p in places] == list(range(6))
    assert {(p.world_size, p.local_world_size) for p in places} == {(6, 2)}
    assert [p.local_rank for p in places] == [0, 1] * 3


@pytest.mark.parametrize(
    ("codes", "culprit"),
    [
        ({"0": 0, "1": 0}, None),
        ({"0": 1, "1": 0}, (0, 1)),
        ({"0": 1, "1": -9}, (1, -9)),  # the other failed by losing it
        ({"2": 70, "3": 1}, (2, 70)),
    ],
)
def test_a_rank_that_a_signal_ended_is_the_cause(
    codes: dict[str, int], culprit: tuple[int, int] | None
) -> None:
    assert Report(node="n", codes=codes).culprit == culprit


def test_the_interface_is_the_one_that_reaches_the_host() -> None:
    assert interface_towards("127.0.0.1") == "lo"
