"""Kill -9 of Ray's daemons at random moments of a data stage's start, each time recovered.

``python -m tests.chaos.ray_daemons --kills 20 --seed 1`` prints a line a kill for
benchmarks/drills.md: what was killed and when, how the attempts ended, how long the stage took.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.smoke import Smoke, kind_of

LATEST_S = 25.0
"""A driver imports and joins its session in about ten seconds, on a busy machine in twice that."""
TIMEOUT_S = 300.0
STAGE = "tokenize"
LATER = ("pack", "train", "perplexity", "continuations")


def daemons(smoke: Smoke) -> dict[str, psutil.Process]:
    """Ray's daemons of a store's runs, by name."""
    found = {}
    for process in smoke.processes():
        try:
            if kind_of(process) == "Ray daemon" and process.status() != psutil.STATUS_ZOMBIE:
                found[process.name()] = process
        except psutil.Error:
            continue
    return found


def strike(smoke: Smoke, after_s: float, rng: random.Random) -> str:
    """Kill a daemon after a while, once there is one; its name."""
    time.sleep(after_s)
    wait_for(lambda: bool(daemons(smoke)), "a daemon of Ray")
    while True:
        found = daemons(smoke)
        name = rng.choice(sorted(found))
        try:
            found[name].kill()
        except psutil.NoSuchProcess:
            continue
        return name


def stage_of(smoke: Smoke, run: str) -> dict[str, Any]:
    """What ``status`` says of the stage."""
    stages: list[dict[str, Any]] = smoke.status(run)["stages"]
    return next(stage for stage in stages if stage["name"] == STAGE)


def is_over(smoke: Smoke, run: str) -> bool:
    """Whether the stage has succeeded, or the whole run ended without it."""
    status = smoke.status(run)
    stages = {stage["name"]: stage["state"] for stage in status["stages"]}
    return stages[STAGE] == "succeeded" or status["state"] in ("failed", "cancelled")


def wait_for(is_so: Callable[[], bool], what: str) -> None:
    """Return once it is so. Raises AssertionError when it never is."""
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.2)


def once(made: Smoke, folder: Path, material: Path, rng: random.Random) -> str:
    """One kill. Raises AssertionError when the stage does not end well, or not called by name."""
    smoke = Smoke.create(folder, material)
    smoke.take_artifacts(made, STAGE, *LATER)
    after_s = rng.uniform(0.0, LATEST_S)
    started = time.monotonic()
    run = smoke.submit("--set", "sweep={}")
    try:
        victim = strike(smoke, after_s, rng)
        wait_for(lambda: is_over(smoke, run), "its end")
        stage = stage_of(smoke, run)
    finally:
        smoke.orchestrator("cancel", run, check=False)
    ends = [attempt["cause"] or attempt["state"] for attempt in stage["attempts"]]
    took_s = time.monotonic() - started
    said = f"{victim} after {after_s:.1f} s: {', '.join(ends)}, {took_s:.0f} s"
    assert stage["state"] == "succeeded", said
    assert set(ends[:-1]) <= {"ray_lost"}, said
    assert smoke.wait_gone() == [], f"{said}; processes are left"
    return said


def main(argv: Sequence[str] | None = None) -> int:
    """Kill as often as asked for; 0 when all was recovered and called by its name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    folder, rng, failed = Path(tempfile.mkdtemp(prefix="daemons-")), random.Random(options.seed), 0
    made = Smoke.create(folder / "made", folder / "material")
    run = made.submit("--set", "sweep={}")
    wait_for(lambda: stage_of(made, run)["state"] == "succeeded", "a first run")
    made.orchestrator("cancel", run, check=False)
    for number in range(options.kills):
        try:
            print(once(made, folder / str(number), folder / "material", rng), flush=True)
        except AssertionError as error:
            failed += 1
            print(f"FAILED: {error}", flush=True)
    print(f"{options.kills} kills, {failed} not recovered or not called ray_lost")
    if not failed:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
