"""Who stands where on several nodes, and who is to blame when ranks end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from jobs.training.process_ranks import (
    Launch,
    NodeRanks,
    Report,
    await_reports,
    interface_towards,
    raise_failure,
    report_path,
)
from orchestrator.errors import RunFailedError
from orchestrator.ledger.storage import Storage
from orchestrator.spec.cluster import Resources
from tests.unit.jobs.training.countdown import rank_config

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


def ranks(tmp_path: Path, script: str, num_ranks: int = 2, num_nodes: int = 1) -> NodeRanks:
    """The ranks of the first node, each a script of the shell."""
    launch = Launch(
        config="{}",
        host="127.0.0.1",
        port=1,
        num_nodes=num_nodes,
        ranks_per_node=num_ranks,
        command=("bash", "-c", script),
    )
    return NodeRanks(Storage(str(tmp_path)), 1, launch, node=0)


def test_ranks_that_all_end_well_are_reported_when_the_last_has(tmp_path: Path) -> None:
    own = ranks(tmp_path, 'while [ "$RANK" = 1 ] && [ ! -e "$0/go" ]; do sleep 0.02; done')
    time.sleep(0.3)
    assert own.report() is None, "rank 1 still runs"
    (tmp_path / "go").touch()
    (report,) = await_reports(own, Storage(str(tmp_path)), 1, 1)
    assert report.codes == {"0": 0, "1": 0}
    assert report.failed_at is None
    assert report.culprit is None


def test_a_failure_is_reported_at_once_and_the_rest_is_ended(tmp_path: Path) -> None:
    own = ranks(tmp_path, '[ "$RANK" = 0 ] && exit 5; exec sleep 600')
    (report,) = await_reports(own, Storage(str(tmp_path)), 1, 1)
    assert report.codes == {"0": 5}
    assert report.culprit == (0, 5)
    assert report.failed_at == pytest.approx(time.time(), abs=30)
    own.end()
    later = own.report()
    assert later
    assert later.codes["1"] == -9
    assert later.failed_at == report.failed_at, "the first failure counts"


def test_other_nodes_get_a_moment_to_report(tmp_path: Path) -> None:
    own, channel = ranks(tmp_path, "exit 1", 1, num_nodes=3), Storage(str(tmp_path))
    channel.create_json(report_path(1, 2), {"node": "n2", "codes": {"2": -9}, "failed_at": 1.0})
    started = time.monotonic()
    reports = await_reports(own, channel, 1, 3, reports_wait_s=0.5)
    assert 0.5 <= time.monotonic() - started < 20
    assert [r.node for r in reports[1:]] == ["n2"]


def blamed(tmp_path: Path, *reports: Report) -> tuple[dict[str, Any], RunFailedError]:
    events: list[dict[str, Any]] = []
    with pytest.raises(RunFailedError) as raised:
        raise_failure(
            list(reports),
            rank_config(tmp_path),
            Resources(nodes=2),
            lambda kind, **fields: events.append({"kind": kind, **fields}),
        )
    (event,) = events
    return event, raised.value


def test_a_signal_is_blamed_before_an_error_that_came_first(tmp_path: Path) -> None:
    lost = Report(node="a", codes={"0": 1}, failed_at=1.0)
    killed = Report(node="b", codes={"1": -9}, failed_at=2.0)
    event, error = blamed(tmp_path, lost, killed)
    assert event == {"kind": "rank_failed", "rank": 1, "code": -9, "node": "b"}
    assert "rank 1 on b: ended by signal 9" in str(error)


def test_of_errors_the_first_is_the_cause_and_no_node_is_blamed(tmp_path: Path) -> None:
    late = Report(node="a", codes={"0": 1}, failed_at=5.0)
    first = Report(node="b", codes={"1": 2}, failed_at=2.0)
    event, error = blamed(tmp_path, late, first)
    assert event == {"kind": "rank_failed", "rank": 1, "code": 2}
    assert "rank 1 on b: exit code 2" in str(error)


def test_ranks_that_ended_well_are_no_failure(tmp_path: Path) -> None:
    raise_failure(
        [Report(node="a", codes={"0": 0})],
        rank_config(tmp_path),
        Resources(),
        lambda *_, **__: None,
    )
