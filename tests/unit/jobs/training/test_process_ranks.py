"""Who stands where on several nodes, and who is to blame when ranks end."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.training.process_ranks import (
    Launch,
    NodeRanks,
    Report,
    await_reports,
    interface_towards,
    launch_path,
    raise_failure,
    report_path,
)
from jobs.training.rank import RankInfo, failure_recorded
from orchestrator.errors import Cause, ExitCode, RunFailedError
from orchestrator.ledger.storage import Storage
from tests.unit.jobs.training.countdown import rank_config

LAUNCH = Launch(config="{}", host="10.0.0.1", port=1234, num_nodes=3, ranks_per_node=2)


def test_ranks_are_numbered_node_by_node() -> None:
    places = [LAUNCH.rank_info(node, local) for node in range(3) for local in range(2)]
    assert [p.rank for p in places] == list(range(6))
    assert {(p.world_size, p.local_world_size) for p in places} == {(6, 2)}
    assert [p.local_rank for p in places] == [0, 1] * 3


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_the_interface_is_the_one_that_reaches_the_host(host: str) -> None:
    assert interface_towards(host) == "lo"


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


def test_a_failure_is_reported_at_once_and_the_rest_is_ended(tmp_path: Path) -> None:
    own = ranks(tmp_path, '[ "$RANK" = 0 ] && exit 5; exec sleep 600')
    (report,) = await_reports(own, Storage(str(tmp_path)), 1, 1)
    assert report.codes == {"0": 5}
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
            2,
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


def test_on_one_node_the_rank_of_a_signal_is_blamed(tmp_path: Path) -> None:
    event, _ = blamed(tmp_path, Report(node="a", codes={"0": 1, "1": -9}, failed_at=1.0))
    assert event == {"kind": "rank_failed", "rank": 1, "code": -9, "node": "a"}


@pytest.mark.parametrize("code", [1, -6])  # NCCL's watchdog aborts ranks that lost another
def test_a_rank_that_knows_the_cause_is_blamed_before_those_that_lost_it(
    tmp_path: Path, code: int
) -> None:
    config = rank_config(tmp_path)
    info = RankInfo(rank=1, world_size=2, local_rank=1, local_world_size=2)
    with pytest.raises(torch.OutOfMemoryError), failure_recorded(config, info):
        raise torch.OutOfMemoryError("CUDA out of memory")
    event, error = blamed(tmp_path, Report(node="a", codes={"0": code, "1": 1}, failed_at=1.0))
    assert event == {"kind": "rank_failed", "rank": 1, "code": 1}
    assert error.cause is Cause.DEVICE_OOM


def test_a_rank_whose_disk_took_no_word_says_why_by_its_exit_code(tmp_path: Path) -> None:
    """Its log may lie on that disk, too; the others only lost it."""
    lost = Report(node="a", codes={"0": 1}, failed_at=1.0)
    full = Report(node="b", codes={"1": ExitCode.UNREACHABLE}, failed_at=2.0)
    event, error = blamed(tmp_path, lost, full)
    assert event["rank"] == 1
    assert error.cause is Cause.STORAGE


class FullDisk(Storage):
    def replace(self, path: str, data: bytes) -> None:  # noqa: ARG002 (nothing is taken)
        raise OSError(28, "No space left on device", f"{self.url}/{path}")


def test_this_machine_keeps_why_a_rank_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    config = rank_config(tmp_path)
    info = RankInfo(rank=1, world_size=2, local_rank=1, local_world_size=2)
    with (
        pytest.raises(RunFailedError),
        failure_recorded(config, info, storage=FullDisk(config.record_url)),
    ):
        raise RunFailedError("not finite", cause=Cause.NONFINITE)
    _, error = blamed(tmp_path, Report(node="a", codes={"0": 1, "1": 1}, failed_at=1.0))
    assert error.cause is Cause.NONFINITE


class Broken:
    """A task that cannot even be imported whole."""

    def __init__(self, *_: object) -> None:
        raise ImportError("no module named flash_attn")


@pytest.mark.parametrize(
    "code",
    [
        "import jobs.training.process_ranks as p; p.run_rank(p.Storage(a), 1)",
        # As where a library is missing.
        "import jobs.training.process_ranks as p; sys.modules['safetensors.torch'] = None;"
        "p.run_rank(p.Storage(a), 1)",
    ],
)
def test_a_rank_that_fails_before_it_trains_says_why(tmp_path: Path, code: str) -> None:
    task = f"{Broken.__module__}:{Broken.__name__}"
    config = rank_config(tmp_path).model_copy(update={"task": task})
    launch = Launch(
        config=config.model_dump_json(),
        host="127.0.0.1",
        port=1,
        num_nodes=1,
        ranks_per_node=1,
        command=(sys.executable, "-c", f"import sys; a = sys.argv[1]; {code}"),
    )
    channel = Storage(str(tmp_path))
    channel.create_json(launch_path(1), asdict(launch))
    reports = await_reports(NodeRanks(channel, 1, launch, node=0), channel, 1, 1)
    with pytest.raises(RunFailedError) as raised:
        raise_failure(reports, config, 1, lambda *_, **__: None)
    assert raised.value.cause is Cause.ERROR
    assert re.search(r": (ImportError|ModuleNotFoundError): .*", str(raised.value).splitlines()[-1])


def test_ranks_that_ended_well_are_no_failure(tmp_path: Path) -> None:
    raise_failure(
        [Report(node="a", codes={"0": 0})],
        rank_config(tmp_path),
        1,
        lambda *_, **__: None,
    )
