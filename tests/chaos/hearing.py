"""Kill -9 of drivers, actors and decoding children while audio is listed, sampled and tokenized.

``python -m tests.chaos.hearing --kills 30 --seed 1`` prints a line a run for benchmarks/drills.md:
what was killed in it, and that its tables have the bytes of an undisturbed one, with nobody
innocent in quarantine.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from math import ceil
from pathlib import Path

import psutil

from orchestrator.ledger.storage import sha256_of
from tests.smoke import Smoke, kind_of

KINDS = ("driver", "actor", "decoder")
SETTINGS = ("--set", "sweep={}", "--set", "corpus.shard_hours=0.002", "--until", "tokenize")
MADE_BEFORE = ("targets", "pretrain", "encoder")
LATEST_S = 6.0


def heard(smoke: Smoke) -> dict[str, str]:
    """SHA-256 of what listing, sampling and tokenizing have made."""
    artifacts = smoke.folder / "store" / "artifacts"
    files = [
        *artifacts.glob("corpus/*/*/*.parquet"),
        *artifacts.glob("*/*/*.parquet"),
        *artifacts.glob("tokenize/*/shards/**/*.parquet"),
    ]
    return {
        str(p.relative_to(artifacts)): sha256_of(p)
        for p in files
        if not {"lease", *MADE_BEFORE} & set(p.relative_to(artifacts).parts)
    }


def kill_one(smoke: Smoke, rng: random.Random, kinds: Collection[str]) -> str | None:
    """SIGKILL one process of these kinds, each as likely as any other."""
    found: dict[str, list[psutil.Process]] = {}
    for process in smoke.processes():
        try:
            if (kind := kind_of(process)) in kinds:
                found.setdefault(kind, []).append(process)
        except psutil.Error:
            continue
    if not found:
        return None
    kind = rng.choice(sorted(found))
    try:
        rng.choice(found[kind]).kill()
    except psutil.NoSuchProcess:
        return None
    return kind


def once(made: Smoke, folder: Path, rng: random.Random, left: Mapping[str, int]) -> Counter[str]:
    """One run, in which as many of each kind are killed as time allows; how many it were."""
    smoke = Smoke.create(folder, made.folder.parent / "material", retry={"max_attempts": 100})
    smoke.take_artifacts(made, *{p.name for p in artifacts_of(made)} - set(MADE_BEFORE))
    killed: Counter[str] = Counter()
    run = smoke.submit(*SETTINGS)
    while smoke.status(run)["state"] != "succeeded":
        time.sleep(rng.uniform(0.5, LATEST_S))
        wanted = [kind for kind, most in left.items() if killed[kind] < most]
        if kind := kill_one(smoke, rng, wanted):
            killed[kind] += 1
        if smoke.status(run)["state"] in ("failed", "cancelled"):
            smoke.orchestrator("resume", run, check=False)
    assert heard(smoke) == heard(made), f"{dict(killed)}: other bytes"
    assert smoke.wait_gone() == [], f"{dict(killed)}: processes are left"
    return killed


def artifacts_of(smoke: Smoke) -> list[Path]:
    """The folders of stages in a store."""
    return list((smoke.folder / "store" / "artifacts").iterdir())


def main(argv: Sequence[str] | None = None) -> int:
    """Kill as often as asked for; 0 when every run had the undisturbed bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    folder, rng = Path(tempfile.mkdtemp(prefix="hearing-")), random.Random(options.seed)
    made = Smoke.create(folder / "made", folder / "material")
    made.finish(made.submit(*SETTINGS))
    killed: Counter[str] = Counter()
    of_each = ceil(options.kills / len(KINDS))
    for number in range(options.kills):
        left = {kind: of_each - killed[kind] for kind in KINDS}
        if not any(left.values()):
            break
        here = once(made, folder / str(number), rng, left)
        print(f"run {number}: {dict(here)} killed, the same {len(heard(made))} files", flush=True)
        killed += here
    print(f"{killed.total()} kills ({dict(killed)}), all files as undisturbed")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
