"""The smoke recipe as a user runs it: own store, the real command line, real processes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
import yaml

from recipes.smoke_material import make_material

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "smoke.yaml"
TIMEOUT_S = 900


@dataclass(frozen=True)
class Smoke:
    """One store with its cluster file."""

    folder: Path
    env: Mapping[str, str] | None = None
    """Environment of the command line; this process's own when absent."""

    @classmethod
    def create(
        cls, folder: Path, material: Path, env: Mapping[str, str] | None = None, **cluster: object
    ) -> Self:
        """A fresh store over material that may be shared."""
        folder.mkdir(parents=True)
        make_material(material)
        spec = {
            "backend": "local",
            "store": str(folder / "store"),
            "data": {"smoke": str(material / "speech")},
            "models": {"smoke-lm": str(material / "lm")},
            "cpus": 2,
            **cluster,
        }
        (folder / "cluster.yaml").write_text(yaml.safe_dump(spec))
        return cls(folder, env)

    def orchestrator(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one command line to its end."""
        done = subprocess.run(
            self._argv(words), capture_output=True, text=True, timeout=TIMEOUT_S, env=self.env
        )
        if check and done.returncode != 0:
            logs = "\n".join(
                f"{p}:\n{p.read_text()[-3000:]}" for p in self.folder.rglob("driver.log")
            )
            raise AssertionError(
                f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}\n{logs}"
            )
        return done

    def take_artifacts(self, other: Smoke, *but: str) -> None:
        """Begin with another store's artifacts, but not those of some stages."""
        theirs, ours = (s.folder / "store" / "artifacts" for s in (other, self))
        for stage in theirs.iterdir():
            if stage.name not in but:
                shutil.copytree(stage, ours / stage.name)

    def submit(self, *words: str) -> str:
        """Submit without watching; the run's name."""
        return self.orchestrator("submit", str(RECIPE), *words).stdout.strip()

    def status(self, run: str) -> dict:
        """The JSON document of ``status``."""
        done = self.orchestrator("status", run, "--json", check=False)
        document = json.loads(done.stdout)
        in_vain = document["state"] in ("failed", "cancelled") and "moved_to" not in document
        assert done.returncode == in_vain, done.stderr
        return document

    def finish(self, run: str, *, resumes: int = 20) -> int:
        """Watch the run to its end, resuming where it stopped; how often that was needed."""
        for needed in range(resumes):
            done = self.orchestrator("resume", run, "--watch", check=False)
            if done.returncode == 0:
                return needed
            print(f"resume {needed} of {run}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        raise AssertionError(f"{run}: did not finish after {resumes} resumes:\n{self.status(run)}")

    def fingerprint(self) -> dict[str, str]:
        """SHA-256 of every file whose bytes must not depend on what happened on the way."""
        artifacts = self.folder / "store" / "artifacts"
        files = [
            *artifacts.glob("tokenize/*/shards/**/*.parquet"),
            *artifacts.glob("pack/*/*.bin"),
            *artifacts.glob("train/*/metrics.jsonl"),
            *artifacts.glob("train/*/validation.jsonl"),
        ]
        return {p.relative_to(artifacts).as_posix(): _sha256(p) for p in sorted(files)}

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of the store's only training."""
        (path,) = (self.folder / "store" / "artifacts" / "train").glob("*/metrics.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines()]

    def begun(self) -> Counter[str]:
        """How often each stage's work was begun under a lease, over all runs of the store."""
        segments = (self.folder / "store" / "runs").glob("*/stages/*/attempts/*/events-*.jsonl")
        events = (json.loads(line) for path in segments for line in path.read_text().splitlines())
        return Counter(e["stage"] for e in events if e["kind"] == "begin")

    def processes(self) -> list[psutil.Process]:
        """Every process of this store's runs: supervisor, drivers, Ray daemons, actors, ranks."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and str(self.folder) in process.environ().get(
                    "PYTHONPATH", ""
                ):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill_one(self, rng: random.Random) -> str | None:
        """SIGKILL a process of the run, each kind as likely as any other; which kind it was."""
        kinds: dict[str, list[psutil.Process]] = {}
        for process in self.processes():
            try:
                if process.status() != psutil.STATUS_ZOMBIE:
                    kinds.setdefault(kind_of(process), []).append(process)
            except psutil.NoSuchProcess:
                continue
        if not kinds:
            return None
        kind = rng.choice(sorted(kinds))
        try:
            rng.choice(kinds[kind]).kill()
        except psutil.NoSuchProcess:
            return None
        return kind

    def wait_gone(self, timeout_s: float = 60) -> list[psutil.Process]:
        """Whatever is left of the run's processes after waiting for them to end."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            left = [
                p for p in self.processes() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE
            ]
            if not left:
                return []
            time.sleep(0.2)
        return left

    def _argv(self, words: tuple[str, ...]) -> list[str]:
        verb, *rest = words
        argv = [sys.executable, "-m", "orchestrator.cli.main", verb, *rest]
        return [*argv, "--cluster", str(self.folder / "cluster.yaml")]


def largest_difference_of_losses(one: Smoke, other: Smoke) -> float:
    """Between two trainings. Raises AssertionError where their samples are not the same."""
    ours, theirs = one.metrics(), other.metrics()
    assert [line["sample_hash"] for line in ours] == [line["sample_hash"] for line in theirs]
    return max(abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=True))


STANDBY = "jobs.training.standby"
KINDS = (
    ("multiprocessing.forkserver", "decoder"),
    ("orchestrator.control.local.supervisor", "supervisor"),
    ("jobs.", "driver"),
    ("RayTrainWorker", "training rank"),
    ("ray::_Host", "actor"),
    ("ray::", "other Ray worker"),
)


def kind_of(process: psutil.Process) -> str:
    """Supervisor, standby, driver of a stage, decoder, training rank, actor, or one of Ray's."""
    command = " ".join(process.cmdline())
    if STANDBY in command:  # of which ranks are forks
        parent = process.parent()
        is_fork = parent is not None and STANDBY in " ".join(parent.cmdline())
        return "training rank" if is_fork else "standby"
    return next((kind for word, kind in KINDS if word in command), "Ray daemon")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
