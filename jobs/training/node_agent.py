"""The agent of a training's node that is not the first: starts ranks there as the driver says.

``python -m`` it is what the job's task becomes on such a node. It serves one launch after the other
for as long as the allocation lasts, so that a restart needs no new job. It decides nothing: the
driver and the supervisor on the first node do.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from types import FrameType

from jobs.training.process_ranks import Launch, NodeRanks, launch_path, over_path, report_path
from orchestrator.ledger.run import ALLOCATION_ENDED, ALLOCATION_FOLDER
from orchestrator.ledger.storage import Storage, to_json

_POLL_S = 0.5
_LAUNCH = re.compile(r"launch-(\d{6})\.json")
_WARNINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Agent:
    """Starts and ends the ranks of this node."""

    def __init__(self, channel: Storage, node: int, *, poll_s: float = _POLL_S) -> None:
        self._channel, self._node, self._poll_s = channel, node, poll_s
        self._ranks: NodeRanks | None = None

    def warn(self, number: int, _frame: FrameType | None) -> None:
        """Pass a warning on: ranks tell each other that one of them must leave."""
        if self._ranks:
            self._ranks.send(number)

    def serve(self) -> None:
        """Serve every launch of the allocation until its first node has nothing left to do."""
        served: set[int] = set()
        while not self._channel.exists(ALLOCATION_ENDED):
            found = [_LAUNCH.fullmatch(name) for name in self._channel.children()]
            newest = max((int(launch.group(1)) for launch in found if launch), default=None)
            if newest is not None and newest not in served:
                served.add(newest)
                self._serve(newest)
            time.sleep(self._poll_s)

    def _serve(self, number: int) -> None:
        launch = Launch(**self._channel.read_json(launch_path(number)))
        if self._node >= launch.num_nodes:
            return  # the batch is for fewer nodes than there are
        record = Storage(json.loads(launch.config)["record_url"])
        self._ranks = NodeRanks(self._channel, number, launch, self._node)
        is_reported = False
        try:
            # Once they have failed or ended, those that go on wait for the others.
            while not self._is_over(number, record):
                if not is_reported and (report := self._ranks.report()):
                    path = report_path(number, self._node)
                    self._channel.replace(path, to_json(asdict(report)))
                    is_reported = True
                time.sleep(self._poll_s)
        finally:
            self._ranks.end()
            self._ranks = None

    def _is_over(self, number: int, record: Storage) -> bool:
        """Whether nobody wants these ranks any more; their driver may be lost without a word."""
        is_over = self._channel.exists(over_path(number)) or self._channel.exists(ALLOCATION_ENDED)
        return is_over or record.exists("end.json")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the allocation that this process is part of."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", required=True, type=int, help="number of this node in the job")
    options = parser.parse_args(argv)
    agent = Agent(Storage(os.environ[ALLOCATION_FOLDER]), options.node)
    for number in _WARNINGS:
        signal.signal(number, agent.warn)
    agent.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
