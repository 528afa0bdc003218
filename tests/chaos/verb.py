"""`orchestrator chaos` with every fault it knows, on a real run of the smoke recipe.

``python -m tests.chaos.verb`` prints what each fault cost, for benchmarks/drills.md;
``tests/chaos/test_verb.py`` does one of them.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from orchestrator.control.chaos import FAULTS
from tests.smoke import Smoke

HERE = tuple(fault for fault in FAULTS if fault not in ("spot", "head"))
"""Those that are not for Ray clusters alone, which `tests/integration/autoscaling.py` has."""
STEPS = 100_000
"""More than a drill lasts: the run is cancelled at its end."""


def start(folder: Path, material: Path, made: Smoke | None = None) -> tuple[Smoke, str]:
    """A run of two ranks whose training has begun and has checkpoints.

    It begins with the artifacts of ``made``, up to its training.
    """
    smoke = Smoke.create(
        folder,
        material,
        resources={"train": {"ranks_per_node": 2}},
        retry={"hang_timeout_s": 10, "max_attempts": 50},
    )
    if made:
        smoke.take_artifacts(made, "train", "perplexity", "continuations")
    told = {"sweep": "{}", "train.steps": STEPS, "train.checkpoint.every_steps": 100}
    run = smoke.submit(
        *(word for key, value in told.items() for word in ("--set", f"{key}={value}"))
    )
    wait_for_step(smoke, run, 250)
    return smoke, run


def wait_for_step(smoke: Smoke, run: str, step: int) -> None:
    """Return once the training has got so far."""
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        (train,) = (s for s in smoke.status(run)["stages"] if s["name"] == "train")
        if (train["step"] or 0) >= step:
            return
        time.sleep(1)
    raise AssertionError(f"{run}: did not reach step {step}: {smoke.status(run)}")


def strike(smoke: Smoke, run: str, fault: str) -> dict[str, Any]:
    """What a fault cost; the training is well past it afterwards."""
    done = smoke.orchestrator("chaos", run, "--kill", fault, "--rank", "1", "--json")
    outcome: dict[str, Any] = json.loads(done.stdout)
    wait_for_step(smoke, run, outcome["step"] + 250)
    return outcome


def main() -> int:
    """Strike with every fault; 0 when all were overcome."""
    folder = Path(tempfile.mkdtemp(prefix="verb-"))
    smoke, run = start(folder / "s", folder / "material")
    for fault in HERE:
        o = strike(smoke, run, fault)
        phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in o["phases_s"].items())
        print(
            f"{fault}: {o['cause']}, {o['steps_lost']} steps lost, noticed {o['noticed_s']:.1f} s, "
            f"restarted {o['restarted_s']:.1f} s, phases ({phases}) s, "
            f"recovered {o['recovered_s']:.1f} s, refused {len(o['refused'])}",
            flush=True,
        )
    print(smoke.orchestrator("status", run).stdout.splitlines()[-1])
    smoke.orchestrator("cancel", run)
    left = smoke.wait_gone()
    print(f"{len(HERE)} faults overcome, {len(left)} processes left")
    shutil.rmtree(folder)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
