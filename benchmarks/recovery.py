"""How soon a training is back after a kill: ``python -m benchmarks.recovery --before DIR``.

The smoke recipe's training on two ranks of this machine's CPU. SIGKILL for rank 1, then the way to
the first new step, by the clocks of the attempts' own records. With ``--before``, the code in
another folder (``git worktree add DIR COMMIT``) takes turns with this one, on the same artifacts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.ledger.attempt import AttemptFolder
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage
from tests.smoke import ROOT, Smoke

STEPS, EVERY_STEPS = 1_000_000, 100
STEPS_BETWEEN = 150
"""From the first step of an attempt to the next kill: a checkpoint is committed by then."""
PHASES = ("noticed", "driver", "start", "connect", "load", "first_step")
TIMEOUT_S = 600.0


def main() -> None:
    """Take turns, and print a table for each version."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="folder with the code to compare with")
    parser.add_argument("--launcher", choices=("ray_train", "submitit"), default="ray_train")
    parser.add_argument("--made", type=Path, help="folder of a store with a smoke run's artifacts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=3, help="kills of each version in a round")
    options = parser.parse_args()
    versions = {"this": ROOT, **({"before": options.before} if options.before else {})}
    folder = Path(tempfile.mkdtemp(prefix="recovery-"))
    made = Smoke(options.made.parent) if options.made else _made(folder)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
    for number in range(options.rounds):
        for name, code in reversed(versions.items()):
            training = Training(folder / f"{name}-{number}", code.resolve(), options.launcher, made)
            for _ in range(options.kills):
                found[name].append(training.strike())
                print(name, _row(found[name][-1]), flush=True)
            training.end()
    for name, outcomes in found.items():
        _report(name, options.launcher, outcomes)
    shutil.rmtree(folder)


class Training:
    """One under way, made by the code in a folder."""

    def __init__(self, folder: Path, code: Path, launcher: str, made: Smoke) -> None:
        self._smoke = _smoke(folder, code, launcher=launcher)
        self._smoke.take_artifacts(made, "train", "perplexity", "continuations")
        told = {"sweep": "{}", "train.steps": STEPS, "train.checkpoint.every_steps": EVERY_STEPS}
        words = [word for key, value in told.items() for word in ("--set", f"{key}={value}")]
        self._name = self._smoke.submit(*words)
        self._run = RunFolder(Storage(str(folder / "store" / "runs" / self._name)))
        (self._id,) = (i.id for i in self._run.plan().instances if i.stage == "train")
        self._await_step(0, STEPS_BETWEEN)

    def strike(self) -> dict[str, float]:
        """Seconds of each phase after a SIGKILL for rank 1."""
        struck = self._newest()
        os.kill(struck.storage.read_json("beats/rank-00001.json")["process"]["pid"], signal.SIGKILL)
        killed_at = time.time()
        first = self._await_step(struck.number, 1)
        following = self._newest()
        phases = _live(following)["phases"]
        ended_at = (struck.end or {})["ended_at"]
        self._await_step(struck.number, STEPS_BETWEEN)
        return {
            "noticed": ended_at - killed_at,
            "driver": first["at"] - ended_at - sum(phases.values()),
            **phases,
            "in all": first["at"] - killed_at,
        }

    def end(self) -> None:
        """Cancel it; nothing may be left."""
        self._smoke.orchestrator("cancel", self._name)
        if left := self._smoke.wait_gone():
            sys.exit(f"left behind: {left}")

    def _newest(self) -> AttemptFolder:
        return self._run.attempts(self._id)[-1]

    def _await_step(self, after_attempt: int, count: int) -> dict[str, Any]:
        """The first step's line of an attempt after one, once so many steps are recorded."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            time.sleep(0.1)
            attempts = [a for a in self._run.attempts(self._id) if a.number > after_attempt]
            if attempts and "first_step" in _live(attempts[-1]).get("phases", {}):
                steps = list(attempts[-1].steps())
                if len(steps) >= count:
                    return steps[0]
        sys.exit(f"{self._name}: no step came within {TIMEOUT_S:.0f} s")


def _live(attempt: AttemptFolder) -> Mapping[str, Any]:
    return attempt.storage.find_json("live.json") or {}


def _made(folder: Path) -> Smoke:
    """What the training needs, made once."""
    smoke = _smoke(folder / "made", ROOT)
    smoke.orchestrator("submit", str(ROOT / "recipes" / "smoke.yaml"), "--until", "pack", "--watch")
    return smoke


def _smoke(folder: Path, code: Path, **cluster: object) -> Smoke:
    ranks = {"resources": {"train": {"ranks_per_node": 2}}, "retry": {"max_attempts": 50}}
    env = {**os.environ, "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}
    return Smoke.create(folder, folder.parent / "material", env, **ranks, **cluster)


def _row(outcome: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in outcome.items())


def _report(name: str, launcher: str, outcomes: list[dict[str, float]]) -> None:
    print(f"{name}, {launcher}, {len(outcomes)} kills: median seconds (least to most)")
    for phase in (*PHASES, "in all"):
        times = sorted(outcome[phase] for outcome in outcomes)
        print(f"  {phase:10} {statistics.median(times):6.2f} ({times[0]:.2f} to {times[-1]:.2f})")


if __name__ == "__main__":
    main()
