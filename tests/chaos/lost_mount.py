"""A mount with the recordings goes away while a stage reads them, and comes back.

``python -m tests.chaos.lost_mount --runs 4 --seed 1`` prints a line a run for benchmarks/drills.md:
in which stage the mount went, and how the stage's attempts ended. It ends as ``storage``, or has
the right bytes already; once the mount is back, the run resumed has the bytes of an undisturbed
one. Needs root.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import Cause
from orchestrator.ledger.attempt import AttemptFolder
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage
from recipes.smoke_material import make_material
from tests.chaos.hearing import SETTINGS, heard
from tests.smoke import Smoke

STAGES = {"corpus": ("corpus", "codebook", "tokenize"), "tokenize": ("tokenize",)}
"""Where the mount goes, and what is made anew."""
COPIES = 30
"""Of the smoke recipe's recordings, so that a stage is under way for a while."""
LATEST_S = 3.0
OVER = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Mount:
    """A tmpfs with the recordings."""

    folder: Path
    copy: Path

    def appear(self) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "none", self.folder], check=True)
        shutil.copytree(self.copy, self.folder, dirs_exist_ok=True)

    def go_away(self) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)

    @contextmanager
    def there(self) -> Iterator[None]:
        """From the beginning of the context to its end."""
        self.folder.mkdir()
        self.appear()
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", self.folder], check=False)


def recordings(material: Path) -> Path:
    """The smoke recipe's in English, many times."""
    make_material(material)
    for number in range(COPIES):
        copy = shutil.copytree(material / "speech/en", material / f"more/en/{number:02d}")
        (copy / "broken.wav").unlink()
    return material / "more"


def attempts(smoke: Smoke, run: str, stage: str) -> tuple[AttemptFolder, ...]:
    """Of the stage, so far."""
    folder = RunFolder(Storage(str(smoke.folder / "store/runs" / run)))
    return folder.attempts(next(i.id for i in folder.plan().instances if i.stage == stage))


def await_work(smoke: Smoke, run: str, stage: str) -> None:
    """Until the corpus stage has its lease, or units of a shard are there."""
    artifacts = smoke.folder / "store/artifacts"
    sign = {"corpus": "corpus/*/lease*", "tokenize": "tokenize/*/shards/*/*.parquet"}[stage]
    while not list(artifacts.glob(sign)):
        assert smoke.status(run)["state"] not in OVER, smoke.status(run)
        time.sleep(0.1)


def once(made: Smoke, folder: Path, mount: Mount, stage: str, delay_s: float) -> str:
    """One run, during which the mount goes; how it went."""
    smoke = Smoke.create(folder, made.folder.parent / "material", data=data(mount))
    smoke.take_artifacts(made, *STAGES[stage])
    run = smoke.submit(*SETTINGS)
    await_work(smoke, run, stage)
    time.sleep(delay_s)
    mount.go_away()
    while (state := smoke.status(run)["state"]) not in OVER:
        time.sleep(1)
    ends = [attempt.end or {} for attempt in attempts(smoke, run, stage)]
    causes = [end.get("cause") for end in ends]
    failed = smoke.orchestrator("resume", run, "--watch", check=False)
    mount.appear()
    assert state == "succeeded" or set(causes) <= {Cause.STORAGE, ""}, ends
    smoke.finish(run)
    assert heard(smoke) == heard(made), f"{causes}: other bytes"
    assert smoke.wait_gone() == []
    why = str(ends[0].get("message", ""))
    return f"{state}, {causes}, resumed without it: exit {failed.returncode}; {why}"


def data(mount: Mount) -> dict[str, str]:
    """Where the recipe's source lies."""
    return {"smoke": str(mount.folder)}


def main(argv: Sequence[str] | None = None) -> int:
    """Let it go as often as asked for; 0 when every run had the undisturbed bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    folder, rng = Path(tempfile.mkdtemp(prefix="mount-")), random.Random(options.seed)
    mount = Mount(folder / "disk", recordings(folder / "material"))
    with mount.there():
        made = Smoke.create(folder / "made", folder / "material", data=data(mount))
        made.finish(made.submit(*SETTINGS))
        print(f"undisturbed: {len(heard(made))} files", flush=True)
        for number in range(options.runs):
            stage, delay_s = list(STAGES)[number % len(STAGES)], rng.uniform(0, LATEST_S)
            said = once(made, folder / str(number), mount, stage, delay_s)
            print(f"run {number}: {stage}, after {delay_s:.1f} s: {said}", flush=True)
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
