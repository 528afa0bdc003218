"""A tiny training as its ranks see it: no launcher, real DeepSpeed, processes to be killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.lm.spec import TASK, LanguageModelSpec
from jobs.training import faults
from jobs.training.heartbeat import LIVE
from jobs.training.loop import train_rank
from jobs.training.rank import RankConfig, RankInfo, TrainingSettings, free_port, log_path, log_to
from orchestrator.ledger import checkpoints
from orchestrator.ledger.artifact import INPUTS, Artifact
from orchestrator.ledger.extension import Length, extend
from orchestrator.ledger.lease import Process
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.store import Store
from orchestrator.plan.keys import key_of
from orchestrator.spec.recipe import Checkpoint, Execution, Model, Optimizer, Schedule

TIMEOUT_S = 900.0
NUM_UNITS = 20
_CONTEXT = multiprocessing.get_context("forkserver")
# Imports take seconds; the server makes them once and forks each rank from there.
_CONTEXT.set_forkserver_preload(
    ["jobs.training.loop", "jobs.lm.task", "deepspeed", "transformers.models.llama.modeling_llama"]
)


def make_lm(folder: Path) -> None:
    """A tiny text LM."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def make_inputs(folder: Path) -> Path:
    """A tiny text LM, and packed tokens with some structure to learn."""
    make_lm(folder / "lm")
    (folder / "pack").mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("train", 3_000), ("valid", 300)):
        (np.cumsum(rng.integers(0, 3, size)) % NUM_UNITS).astype("<u2").tofile(
            folder / "pack" / f"{name}.bin"
        )
    return folder


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training: its inputs, its folder, and what all of its attempts know."""

    inputs: Path
    root: Path
    steps: int = 48
    every_steps: int = 8
    zero_stage: int = 0
    micro_batch: int = 2
    global_batch: int = 8
    max_nonfinite_in_row: int = 3
    out_url: str = ""
    """Where the artifact lies; below ``root`` when empty."""
    more: dict[str, Any] = field(default_factory=dict)
    """Fields of the RankConfig."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of the ranks; those of the fork server are its first user's."""

    @property
    def out(self) -> Storage:
        """The artifact's folder."""
        return Storage(self.out_url or str(self.root / "out"))

    def in_store(self, store: Path, steps: int) -> Training:
        """The same of another length, where trainings know of each other what their keys say."""
        fields = {"train": {"steps": steps, "schedule": {"kind": "inverse_sqrt"}}}
        inputs = {"stage": "train", "version": 2, "fields": fields, "upstream": {}}
        artifact = Store.open(str(store)).artifact("train", key_of(inputs))
        artifact.begin(inputs)
        return replace(self, root=store / f"{steps}", steps=steps, out_url=artifact.storage.url)

    def extend(self, lease_n: int = 1) -> dict[str, Any]:
        """Begin with the steps of another one in the store; what is said of its checkpoint."""
        settings = self.trained()["settings"]
        length = Length(
            steps=self.steps,
            validate_every_steps=settings.validate_every_steps,
            zero_stage=self.zero_stage,
        )
        own = Artifact("train", key_of(self.out.read_json(INPUTS)), self.out)
        chosen = extend(own, length, lease_n=lease_n, scratch=self.root / "extended")
        return chosen.about if chosen else {}

    def record(self, lease_n: int) -> Storage:
        """The folder of an attempt."""
        return Storage(str(self.root / f"attempt-{lease_n}"))

    def live(self, lease_n: int) -> dict[str, Any]:
        """Rank 0's last words."""
        return self.record(lease_n).read_json(LIVE)

    def config(self, lease_n: int, driver: Process | None = None) -> RankConfig:
        """What the ranks of an attempt are told."""
        folder = self.root / f"attempt-{lease_n}"
        folder.mkdir(parents=True)
        return RankConfig(
            **self.trained(),
            execution=Execution(zero_stage=self.zero_stage, micro_batch=self.micro_batch),
            out_url=self.out.url,
            lease_n=lease_n,
            folder=str(folder),
            record_url=str(folder),
            scratch=str(self.root / "scratch"),
            tracker="test",
            driver=driver or Process.current(),
            **self.more,
        )

    def trained(self) -> dict[str, Any]:
        """Fields of the RankConfig that say what is trained, and how."""
        return {
            "task": TASK,
            "spec": LanguageModelSpec(
                model=Model(text_model="tiny", revision="0"),
                context_length=16,
                schedule=Schedule(warmup_steps=4),
                num_units=NUM_UNITS,
                source=str(self.inputs / "lm"),
                pack_url=str(self.inputs / "pack"),
            ).model_dump(mode="json"),
            "settings": TrainingSettings(
                steps=self.steps,
                global_batch=self.global_batch,
                seed=3,
                optimizer=Optimizer(lr=3e-3, weight_decay=0.01),
                precision="fp32",
                checkpoint=Checkpoint(every_steps=self.every_steps),
                validate_every_steps=12,
                max_nonfinite_in_row=self.max_nonfinite_in_row,
            ),
        }

    def start(
        self,
        lease_n: int = 1,
        *,
        world_size: int = 2,
        fault: dict[str, Any] | None = None,
        driver: Process | None = None,
    ) -> list[BaseProcess]:
        """The ranks of an attempt, under way."""
        told, port = self.config(lease_n, driver).model_dump_json(), free_port()
        environment = {**self.environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if fault:
            environment[faults.VARIABLE] = json.dumps(fault)
        ranks = [
            _CONTEXT.Process(target=_rank, args=(told, rank, world_size, environment))
            for rank in range(world_size)
        ]
        for rank in ranks:
            rank.start()
        return ranks

    def run(self, lease_n: int = 1, **options: Any) -> list[int | None]:
        """Exit codes of an attempt's ranks."""
        return finish(self.start(lease_n, **options))

    def results(self) -> dict[str, bytes]:
        """What must not depend on what happened on the way."""
        names = ("model/model.safetensors", "metrics.jsonl", "validation.jsonl")
        return {name: self.out.read_bytes(name) for name in names}

    def lines(self, name: str = "metrics") -> list[dict[str, Any]]:
        """The metric lines of the finished training, or those of its validations."""
        return [json.loads(line) for line in self.out.read_bytes(f"{name}.jsonl").splitlines()]

    def kill_after(self, step: int, victim: BaseProcess, lease_n: int = 1) -> None:
        """SIGKILL one rank as soon as the checkpoint of ``step`` is committed."""
        name = checkpoints.name_of(step, lease_n)
        wait_for(
            lambda: self.out.exists(f"{checkpoints.FOLDER}/{name}/{checkpoints.MANIFEST}"), name
        )
        os.kill(victim.pid or 0, signal.SIGKILL)


def wait_for(happened: Any, what: str) -> None:
    """Return once something has happened."""
    deadline = time.monotonic() + TIMEOUT_S
    while not happened():
        assert time.monotonic() < deadline, f"{what} never came"
        time.sleep(0.002)


def finish(ranks: list[BaseProcess]) -> list[int | None]:
    """Exit codes, once all have ended."""
    for rank in ranks:
        rank.join(TIMEOUT_S)
    return [rank.exitcode for rank in ranks]


def _rank(told: str, rank: int, world_size: int, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    config = RankConfig.model_validate_json(told)
    log_to(log_path(Path(config.folder), rank))
    train_rank(
        config,
        RankInfo(rank=rank, world_size=world_size, local_rank=rank, local_world_size=world_size),
    )
