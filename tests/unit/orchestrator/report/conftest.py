"""A run in a real store, written with the ledger's own functions: finished or half-finished."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.ledger.artifact import Artifact
from orchestrator.ledger.attempt import AttemptFolder
from orchestrator.ledger.lease import Process
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import Observed
from orchestrator.ledger.store import Store
from orchestrator.plan.planner import Instance, Plan, make_plan
from orchestrator.plan.stages import Facts
from orchestrator.report.page import write_report
from orchestrator.spec.cluster import Cluster
from orchestrator.spec.recipe import Recipe
from tests.unit.orchestrator.recipes import variants_of

BEGAN_AT = 1_700_000_000.0
STEPS = 40
TEST_PERPLEXITY = {"twist": 14.1, "cold": 17.0}


def recipe_of(sweep: dict[str, list[Any]], **over: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tiny",
            "corpus": {"sources": [{"name": "speech"}]},
            "encoder": {"model": "hubert", "sha256": "a" * 64, "layer": 3},
            "tokenizer": {"num_clusters": 100},
            "model": {"text_model": "lm", "sha256": "b" * 64},
            "train": {"steps": STEPS, "context_length": 32, "global_batch_tokens": 128},
            "sweep": sweep,
            **over,
        }
    )


def plan_of(recipe: Recipe) -> Plan:
    return make_plan(variants_of(recipe), Facts())


def split_scores(perplexity: float, half_width: float) -> dict[str, Any]:
    return {
        "perplexity": perplexity,
        "perplexity_95": [perplexity - half_width, perplexity + half_width],
        "nats_per_token": math.log(perplexity),
        "nats_per_s": 28 * math.log(perplexity),
        "nats_per_s_95": [1.0, 2.0],
        "num_utterances": 80,
        "num_scored_tokens": 9000,
        "audio_s": 330.0,
    }


def scores_of(valid: float, test: float, half_width: float = 0.4) -> dict[str, Any]:
    baselines = {"unigram": split_scores(96.3, 1.0), "bigram": split_scores(15.5, 0.3)}
    return {
        "rule": "each utterance alone",
        "context_length": 32,
        "splits": {
            "valid": {"model": split_scores(valid, half_width), **baselines},
            "test": {"model": split_scores(test, half_width), **baselines},
        },
    }


def nll_table(
    nll: Sequence[float], *, num_scored: int, bigram: Sequence[float] | None = None
) -> bytes:
    """``test.nll.parquet`` of utterances of a second each."""
    columns = {
        "id": [f"utt-{n}" for n in range(len(nll))],
        "nll": np.array(nll, dtype=np.float64),
        "num_scored": np.full(len(nll), num_scored),
        "num_samples": np.full(len(nll), 16_000),
    }
    if bigram is not None:
        columns["bigram_nll"] = np.array(bigram, dtype=np.float64)
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


FACTS: dict[str, dict[str, Any]] = {
    "corpus": {
        "kept_hours": 1.86,
        "num_recordings": 2400,
        "num_utterances": 2412,
        "num_shards": 19,
        "num_left_out": 31,
        "num_quarantined": 2,
    },
    "encoder": {
        "frame_rate_hz": 50.0,
        "hop": 320,
        "layer": 3,
        "receptive_field": 400,
        "sha256": "c" * 64,
        "unit_quality": {
            "num_clusters": 100,
            "encoder_pnmi": 0.42,
            "mfcc_pnmi": 0.316,
            "material": "two synthetic voices",
        },
    },
    "codebook": {"num_clusters": 100, "dim": 192, "inertia": 12345.6789, "iterations": 23},
    "tokenize": {
        "num_shards": 19,
        "num_tokens": 187_000,
        "audio_s": 6696.0,
        "unigram_entropy_bits": 6.57,
    },
    "pack": {
        "num_empty_utterances": 1,
        "splits": {
            name: {
                "num_recordings": n,
                "num_utterances": n,
                "num_tokens": 78 * n,
                "num_samples": 44_800 * n,
            }
            for name, n in {"train": 2150, "valid": 70, "test": 190}.items()
        },
    },
    "train": {
        "num_parameters": 21_300_000,
        "steps": STEPS,
        "tokens_seen": STEPS * 128,
        "epochs": 0.03,
    },
}


@dataclass
class Ledger:
    """One store with one run, filled step by step."""

    store: Store
    run: RunFolder
    plan: Plan
    clock: float = BEGAN_AT

    @classmethod
    def create(cls, folder: Path, recipe: Recipe) -> Ledger:
        store, plan = Store.open(str(folder / "store")), plan_of(recipe)
        run = RunFolder(store.run_storage(plan.run))
        cluster = Cluster(backend="fake", store=str(folder / "store"))
        assert run.create(plan, recipe, cluster, {}, {"commit": "0123abc", "patch": ""})
        return cls(store, run, plan)

    @property
    def observed(self) -> Observed:
        return Observed(is_alive=self.run.live_supervisor() is not None)

    def artifact(self, instance: Instance) -> Artifact:
        return self.store.artifact(instance.stage, instance.key)

    def of_stage(self, stage: str) -> list[Instance]:
        return [i for i in self.plan.instances if i.stage == stage]

    def attempt(self, instance: Instance, took_s: float, **end: Any) -> AttemptFolder:
        attempt = self.run.begin_attempt(instance.id, started_at=self.clock, supervisor=1)
        self.clock += took_s
        if end:
            attempt.finish(ended_at=self.clock, node="node7", **end)
        return attempt

    def publish(self, instance: Instance, run: str | None = None) -> None:
        artifact = self.artifact(instance)
        producer = {
            "run": run or self.run.name,
            "attempt": 1,
            "lease": 1,
            "instance": instance.id,
            "versions": {"torch": "2.14.1"},
        }
        artifact.publish(
            inputs=instance.inputs, facts=FACTS.get(instance.stage, {}), producer=producer
        )

    def write_training(self, instance: Instance, drop: float) -> None:
        lines = [{"step": n, "loss": 4.6 - drop * n / STEPS} for n in range(1, STEPS + 1)]
        driven = [
            {**line, "lr": 3e-3, "grad_norm": 0.8 + 0.1 * (n % 3)} for n, line in enumerate(lines)
        ]
        self._write_lines(instance, "metrics.jsonl", driven)
        self._write_lines(instance, "validation.jsonl", lines[9::10])

    def _write_lines(self, instance: Instance, path: str, lines: list[dict[str, Any]]) -> None:
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        self.artifact(instance).storage.create(path, data)

    def finish_data(self) -> None:
        for instance in self.plan.instances:
            if instance.stage in ("corpus", "encoder", "codebook", "tokenize", "pack"):
                attempt = self.attempt(instance, 30.0, state="succeeded")
                progress = {"at": self.clock, "done": 19, "total": 19, "unit": "shards"}
                rates = {"audio_s_per_s": 41.25}
                attempt.storage.replace(
                    "progress.json", json.dumps({**progress, "rates": rates}).encode()
                )
                self.publish(instance)

    def finish_variant(self, name: str, scores: dict[str, Any]) -> None:
        instances = next(v for v in self.plan.variants if v["name"] == name)["instances"]
        train, perplexity, continuations = (
            self.plan.instance(instances[s]) for s in ("train", "perplexity", "continuations")
        )
        if not self.artifact(train).is_complete():
            attempt = self.attempt(train, 120.0, state="succeeded")
            steps = [{"step": 1, "tokens_seen": 128, "step_s": s} for s in (0.5, 0.25, 4.0)]
            lines = "".join(json.dumps(line) + "\n" for line in steps)
            attempt.storage.replace("metrics-0001.jsonl", lines.encode())
            self.write_training(train, drop=2.0 if "twist" in name else 1.6)
            self.publish(train)
        for instance in (perplexity, continuations):
            self.attempt(instance, 5.0, state="succeeded")
        self.artifact(perplexity).storage.create_json("scores.json", scores)
        said = {
            "id": "utt-1",
            "prompt": [1, 2],
            "prompt_s": 0.5,
            "continuation": [3, 4],
            "truth": [5, 6],
        }
        self.artifact(continuations).storage.create_json("continuations.json", [said])
        self.publish(perplexity)
        self.publish(continuations)


@pytest.fixture
def new_ledger(tmp_path: Path) -> Callable[..., Ledger]:
    def create(sweep: dict[str, list[Any]] | None = None, **over: Any) -> Ledger:
        chosen = {"model.init": ["twist", "cold"]} if sweep is None else sweep
        return Ledger.create(tmp_path, recipe_of(chosen, **over))

    return create


@pytest.fixture
def finished(tmp_path: Path) -> Ledger:
    return finish(tmp_path)


@pytest.fixture(scope="session")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ledger, str]:
    """A finished run that no test changes, and its page: drawing takes most of a page's time."""
    ledger = finish(tmp_path_factory.mktemp("untouched"))
    return ledger, Path(write_report(ledger.run, ledger.store, ledger.observed)).read_text()


def finish(folder: Path) -> Ledger:
    """Two arms, all stages done, one training attempt lost on the way."""
    ledger = Ledger.create(folder, recipe_of({"model.init": ["twist", "cold"]}))
    supervisor = ledger.run.begin_supervisor(process=asdict(Process.current()))
    supervisor.finish(state="succeeded")
    ledger.finish_data()
    first = ledger.of_stage("train")[0]
    ledger.attempt(first, 50.0, state="preempted", cause="preempted", reason="goes on")
    for init, perplexity in TEST_PERPLEXITY.items():
        ledger.finish_variant(f"init={init}", scores_of(perplexity + 0.1, perplexity))
    return ledger
