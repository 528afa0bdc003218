"""Runs on a real Slurm cluster as a user has them: the command line, and what a user can see."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from orchestrator.ledger import checkpoints
from orchestrator.ledger.attempt import AttemptFolder
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage
from tests.slurm.cluster import SlurmCluster
from tests.smoke import RECIPE, Smoke

SETTINGS = {
    "sweep": "{}",
    "corpus.shard_hours": "0.001",
    "train.steps": "600",
    "train.validate_every_steps": "200",
    "train.checkpoint.every_steps": "40",
}
"""One variant, some shards, and a training long enough to be disturbed."""
RESOURCES = {
    "corpus": {"mem_gb": 1},
    "encoder": {"mem_gb": 1},
    "codebook": {"mem_gb": 1, "nodes": 2, "max_workers": 2},
    "tokenize": {"mem_gb": 1, "nodes": 3, "max_workers": 3},
    "pack": {"mem_gb": 1},
    "train": {"mem_gb": 2, "nodes": 2, "ranks_per_node": 2},
    "perplexity": {"mem_gb": 1},
    "continuations": {"mem_gb": 1},
}
TIMEOUT_S = 900.0
Found = TypeVar("Found")


@dataclass(frozen=True)
class SlurmSmoke(Smoke):
    """One store with a cluster file for Slurm."""

    @classmethod
    def on(
        cls, where: SlurmCluster, /, folder: Path, material: Path, **cluster: object
    ) -> SlurmSmoke:
        """A fresh store whose jobs run on this cluster."""
        return cls.create(folder, material, where.env, **{**cls.sections(where), **cluster})

    @staticmethod
    def sections(where: SlurmCluster) -> dict[str, Any]:
        """What a cluster file for it says."""
        return {
            "backend": "slurm",
            "scratch": str(where.scratch),
            "resources": RESOURCES,
            "slurm": {
                "partition": "low",
                "workers": {"cpus": where.cpus},  # a node for each
                "idle_timeout_s": 20,
            },
            "retry": {"heartbeat_timeout_s": 6, "notice_s": 30},
        }

    def submit(self, *words: str, **settings: str) -> str:
        """Submit the recipe with these settings; the run's name."""
        chosen = [w for k, v in {**SETTINGS, **settings}.items() for w in ("--set", f"{k}={v}")]
        return self.orchestrator("submit", str(RECIPE), *chosen, *words).stdout.strip()

    def forget_artifacts(self, *stages: str) -> None:
        """Let some stages be done again."""
        for stage in stages:
            shutil.rmtree(self.folder / "store" / "artifacts" / stage)

    def change(self, **cluster: object) -> None:
        """Rewrite sections of the cluster file."""
        path = self.folder / "cluster.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **cluster}))

    def run(self, name: str) -> RunFolder:
        """The run's folder, in the store that the cluster file names now."""
        store = yaml.safe_load((self.folder / "cluster.yaml").read_text())["store"]
        return RunFolder(Storage(f"{store}/runs/{name}"))

    def attempts(self, name: str, stage: str) -> tuple[AttemptFolder, ...]:
        """The attempts of a stage."""
        run = self.run(name)
        return run.attempts(next(i.id for i in run.plan().instances if i.stage == stage))

    def causes(self, name: str, stage: str) -> list[str]:
        """How the attempts of a stage ended."""
        return [(a.end or {"cause": "(open)"})["cause"] for a in self.attempts(name, stage)]

    def job(self, name: str, stage: str, kind: str = "stage") -> str:
        """The id of a stage's newest job."""
        paths = (self.folder / "store" / "runs" / name / "submissions").glob("*/*/job.json")
        jobs = [json.loads(p.read_text()) for p in sorted(paths)]
        return [j for j in jobs if j["kind"] == kind and j["instance"].startswith(stage)][-1]["id"]

    def await_step(self, name: str, step: int) -> int:
        """Wait until a training is beyond a step; where it is."""
        return wait_for(lambda: found if (found := self._step(name)) > step else 0, f"step {step}")

    def preempt_training(self, slurm: SlurmCluster, name: str) -> int:
        """Take all nodes away from it for a while; the step that it had come to."""
        self.await_step(name, 60)
        slurm.occupy(*slurm.nodes, seconds=3)
        wait_for(lambda: self.causes(name, "train") != ["(open)"], "the end of the attempt")
        return int(self.attempts(name, "train")[0].storage.read_json("live.json")["step"])

    def await_end(self, name: str) -> str:
        """Wait until nothing more happens to a run; its state."""

        def ended() -> str:
            state = str(self.status(name)["state"])
            return state if state not in ("queued", "running", "unknown") else ""

        return wait_for(ended, f"the end of {name}", every_s=2.0)

    def jobs_output(self, name: str) -> str:
        """What all jobs of a run have said, for a failure's message."""
        logs = (self.folder / "store" / "runs" / name / "submissions").rglob("*_log.out")
        return "\n".join(f"{p}:\n{p.read_text()[-2000:]}" for p in sorted(logs))

    def _step(self, name: str) -> int:
        attempts = self.attempts(name, "train")
        try:
            return int(attempts[-1].storage.read_json("live.json")["step"]) if attempts else 0
        except (FileNotFoundError, KeyError):
            return 0


def wait_for(
    look: Callable[[], Found], what: str, *, timeout_s: float = TIMEOUT_S, every_s: float = 0.2
) -> Found:
    """What ``look`` finds once it finds anything."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(every_s)
    return found


def saved_step(attempt: AttemptFolder) -> int:
    """The step that an attempt began with, as its first event tells."""
    resumed = [e["resumed_from"] for e in attempt.events() if e["kind"] == "training"]
    return checkpoints.step_of(resumed[-1]) if resumed else 0
