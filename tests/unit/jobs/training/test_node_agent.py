"""An agent serves each launch once, reports how its ranks ended, and ends what nobody wants."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from jobs.training.node_agent import Agent
from jobs.training.process_ranks import Launch, launch_path, over_path, report_path
from orchestrator.ledger.run import ALLOCATION_ENDED
from orchestrator.ledger.storage import Storage
from tests.unit.jobs.training.countdown import rank_config

POLL_S = 0.02


class Serving:
    """An agent of node 1 in a thread, whose ranks are commands of the shell."""

    def __init__(self, folder: Path) -> None:
        self.channel, self.config = Storage(str(folder / "channel")), rank_config(folder)
        self.agent = Agent(self.channel, 1, poll_s=POLL_S)
        self.thread = threading.Thread(target=self.agent.serve)

    def launch(self, number: int, script: str, num_nodes: int = 2) -> None:
        """Order a launch of one rank a node."""
        launch = Launch(
            config=self.config.model_dump_json(),
            host="127.0.0.1",
            port=1,
            num_nodes=num_nodes,
            ranks_per_node=1,
            command=("bash", "-c", script),
        )
        self.channel.create_json(launch_path(number), asdict(launch))

    def report(self, number: int) -> dict[str, int]:
        path = report_path(number, 1)
        wait_for(lambda: self.channel.exists(path))
        codes: dict[str, int] = self.channel.read_json(path)["codes"]
        return codes


def wait_for(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(POLL_S)


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    made = Serving(tmp_path)
    made.thread.start()
    yield made
    made.channel.replace(ALLOCATION_ENDED, b"{}")
    made.thread.join(20)
    assert not made.thread.is_alive()


def test_each_launch_is_served_once_and_reported(serving: Serving, tmp_path: Path) -> None:
    for number, code in ((1, 3), (2, 0)):
        serving.launch(number, f"echo x >> {tmp_path}/starts; exit {code}")
        assert serving.report(number) == {"1": code}
        serving.channel.replace(over_path(number), b"{}")
    assert (tmp_path / "starts").read_text() == "x\nx\n"


def test_a_launch_on_fewer_nodes_than_there_are_is_others(serving: Serving, tmp_path: Path) -> None:
    serving.launch(1, f"echo x >> {tmp_path}/starts", num_nodes=1)
    serving.channel.replace(over_path(1), b"{}")
    serving.launch(2, f"echo y >> {tmp_path}/starts")
    assert serving.report(2) == {"1": 0}
    serving.channel.replace(over_path(2), b"{}")
    assert (tmp_path / "starts").read_text() == "y\n"
    assert not serving.channel.exists(report_path(1, 1))


def test_a_rank_knows_where_it_stands_and_whom_to_meet(serving: Serving, tmp_path: Path) -> None:
    names = "$RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT"
    serving.launch(1, f"echo {names} > {tmp_path}/rank")
    serving.report(1)
    serving.channel.replace(over_path(1), b"{}")
    assert (tmp_path / "rank").read_text() == "1 2 0 1 127.0.0.1 1\n"


@pytest.mark.parametrize("how", ["over", "ended", "allocation"])
def test_ranks_that_nobody_wants_are_ended(serving: Serving, tmp_path: Path, how: str) -> None:
    serving.launch(1, f"echo $$ > {tmp_path}/pid; exec sleep 600")
    pid = tmp_path / "pid"
    wait_for(lambda: pid.exists() and pid.read_text())
    running = Path("/proc") / pid.read_text().strip()
    assert running.exists()
    if how == "ended":
        Storage(serving.config.record_url).replace("end.json", b"{}")
    else:
        serving.channel.replace(over_path(1) if how == "over" else ALLOCATION_ENDED, b"{}")
    wait_for(lambda: not running.exists())
    assert not serving.channel.exists(report_path(1, 1))


def test_a_warning_is_passed_on(serving: Serving, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"trap 'exit 9' USR1; touch {ready}; while true; do sleep 0.05; done"
    serving.launch(1, script)
    wait_for(ready.exists)
    serving.agent.warn(10, None)  # SIGUSR1
    assert serving.report(1) == {"1": 9}
    serving.channel.replace(over_path(1), b"{}")
