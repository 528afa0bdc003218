"""Kill -9 at every named point of saving, publishing and retention, of each rank and the driver.

``python -m tests.chaos.points`` runs the whole matrix and prints a line a case for
benchmarks/drills.md; ``tests/chaos/test_points.py`` runs a slice of it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.ledger import checkpoints
from orchestrator.ledger.lease import Process
from tests.training import Training, finish, make_inputs

STEPS, EVERY, STEP = 40, 8, 24
"""The fault strikes with the third checkpoint, when there is one to retire."""

RANK_POINTS = (
    "save.begin",  # nothing of the checkpoint is written
    "save.written",  # DeepSpeed has written its files to the node's disk
    "save.staged",  # so have we the random states; training goes on from here
    "publish.begin",  # the uploader takes it up
    "publish.file",  # one of this rank's files is in the store
    "publish.files",  # all of them are
    "publish.done",  # and the note that says so
)
"""Passed by every rank with every checkpoint."""

LEADER_POINTS = (
    "commit.gathered",  # every rank's note is there
    "commit.metrics",  # the metric lines are in the store
    "commit.manifest",  # the checkpoint exists
    "retire.begin",  # there is something to remove
    "retire.manifest",  # the old checkpoint exists no more
    "retire.file",  # one of its files is gone
    "retire.end",  # all of it is
)
"""Passed by rank 0 alone."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Who is killed, and where in the making of a checkpoint."""

    point: str
    rank: int
    victim: str

    def __str__(self) -> str:
        who = f"rank {self.rank}" if self.victim == "rank" else "driver"
        return f"{who} at {self.point}"


def cases() -> Iterator[Case]:
    """Every point, each rank that passes it, and the driver."""
    for point in (*RANK_POINTS, *LEADER_POINTS):
        yield Case(point=point, rank=0, victim="rank")
        if point in RANK_POINTS:
            yield Case(point=point, rank=1, victim="rank")
        yield Case(point=point, rank=0, victim="driver")


def strike(case: Case, inputs: Path, root: Path, whole: dict[str, bytes]) -> int:
    """Steps that were lost; raises AssertionError when the next start does not make it good."""
    training = Training(inputs=inputs, root=root, steps=STEPS, every_steps=EVERY, zero_stage=1)
    fault = {
        "kind": "kill",
        "point": case.point,
        "rank": case.rank,
        "step": STEP,
        "victim": case.victim,
    }
    driver = subprocess.Popen(["sleep", "600"])
    try:
        codes = finish(training.start(fault=fault, driver=Process.of(driver.pid)))
    finally:
        driver.kill()
        driver.wait()
    assert all(code != 0 for code in codes), f"{case}: nobody was killed, or a rank went on"
    assert len(checkpoints.committed(training.out)) >= 2, f"{case}: fewer than two checkpoints"
    assert training.run(2) == [0, 0], f"{case}: the next start failed"
    live = training.live(2)
    assert live["refused"] == [], f"{case}: {live['refused']}"
    resumed = checkpoints.step_of(live["resumed_from"])
    assert training.results() == whole, f"{case}: other bytes"
    lost = STEP - resumed
    assert lost <= EVERY, f"{case}: {lost} steps lost"
    return lost


def main() -> int:
    """Run the matrix; 0 when every case was recovered."""
    folder = Path(tempfile.mkdtemp(prefix="points-"))
    (folder / "inputs").mkdir()
    inputs = make_inputs(folder / "inputs")
    calm = Training(
        inputs=inputs, root=folder / "calm", steps=STEPS, every_steps=EVERY, zero_stage=1
    )
    assert calm.run() == [0, 0]
    whole, failed, losses = calm.results(), 0, []
    for number, case in enumerate(cases()):
        started = time.monotonic()
        try:
            losses.append(strike(case, inputs, folder / str(number), whole))
            said = f"{losses[-1]} steps lost"
        except AssertionError as error:
            failed, said = failed + 1, f"FAILED: {error}"
        print(f"{case}: {said}, {time.monotonic() - started:.0f} s", flush=True)
    print(f"{len(losses) + failed} cases, {failed} not recovered, at most {max(losses)} steps lost")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
