"""Kill -9 of random processes of the smoke run, again and again: nothing may differ.

``python -m tests.chaos.drill --kills 30`` prints a line for each run and the totals that belong
into benchmarks/drills.md.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.smoke import Smoke

MAX_KILLS_A_RUN = 5
PAUSE_S = (1.0, 25.0)


def main() -> int:
    """Run the drill; 0 when every run ended with the same bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="drill-"))
    calm = Smoke.create(folder / "calm", folder / "material")
    started = time.monotonic()
    calm.finish(calm.submit())
    print(f"undisturbed: {time.monotonic() - started:.0f} s", flush=True)
    kills, bad = _drill(folder, calm, options.kills, random.Random(options.seed))
    print(
        f"kills: {sum(kills.values())} ({', '.join(f'{n} {w}' for w, n in sorted(kills.items()))})"
    )
    print(f"runs that ended differently: {bad}")
    if not bad:
        shutil.rmtree(folder)
    return 1 if bad else 0


def _drill(folder: Path, calm: Smoke, wanted: int, rng: random.Random) -> tuple[Counter[str], int]:
    kills: Counter[str] = Counter()
    bad = number = 0
    while kills.total() < wanted:
        number += 1
        smoke = Smoke.create(folder / f"run{number}", folder / "material")
        started = time.monotonic()
        run = smoke.submit()
        here, resumes = _kill_and_resume(
            smoke, run, min(MAX_KILLS_A_RUN, wanted - kills.total()), rng
        )
        kills.update(here)
        same = smoke.fingerprint() == calm.fingerprint()
        left = smoke.wait_gone()
        bad += not same or bool(left)
        print(
            f"run {number}: {len(here)} kills ({', '.join(here)}), {resumes} resumes, "
            f"{time.monotonic() - started:.0f} s, {'same bytes' if same else 'DIFFERENT BYTES'}, "
            f"{len(left)} processes left",
            flush=True,
        )
        if same:
            shutil.rmtree(smoke.folder)
    return kills, bad


def _kill_and_resume(
    smoke: Smoke, run: str, wanted: int, rng: random.Random
) -> tuple[list[str], int]:
    """Up to ``wanted`` kills while the run lasts, each followed by a resume; what was killed."""
    killed: list[str] = []
    resumes = 0
    while len(killed) < wanted:
        time.sleep(rng.uniform(*PAUSE_S))
        if smoke.status(run)["state"] == "succeeded":
            break
        what = smoke.kill_one(rng)
        if what:
            killed.append(what)
        resumes += smoke.orchestrator("resume", run).returncode == 0
    return killed, resumes + smoke.finish(run)


if __name__ == "__main__":
    sys.exit(main())
