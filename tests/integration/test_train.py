"""Units to scores with tiny models, by both launchers: real DeepSpeed, a real Ray session."""

from __future__ import annotations

import json
import math
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs import continuations, pack, perplexity, train
from jobs.attempt import Attempt
from orchestrator.errors import LeaseHeldError, RunFailedError
from orchestrator.ledger import checkpoints
from orchestrator.ledger.artifact import Artifact
from orchestrator.ledger.attempt import AttemptFolder
from orchestrator.ledger.run import STANDBY
from orchestrator.ledger.storage import Storage, sha256_of
from orchestrator.spec.cluster import Cluster
from orchestrator.spec.recipe import Recipe
from tests import offline_wandb
from tests.training import make_lm

pytestmark = pytest.mark.slow

NUM_UNITS, STEPS = 20, 400


@dataclass(frozen=True)
class World:
    """A store with a finished tokenize artifact, and a text LM."""

    root: Path
    lm: Path

    def artifact(self, stage: str, name: str = "0") -> Artifact:
        return Artifact(
            stage, name * 64, Storage(str(self.root / "artifacts" / stage / (name * 12)))
        )

    def attempt(self, stage: str, name: str = "0", **options: object) -> Attempt:
        """What run_stage would hand to the stage's work."""
        lease_n = int(str(options.pop("lease_n", 1)))
        launcher, retry = options.pop("launcher", "submitit"), options.pop("retry", {})
        folder = self.root / "runs" / f"{stage}-{name}" / "attempts" / f"{lease_n:04d}"
        folder.mkdir(parents=True)
        cluster = Cluster.model_validate(
            {
                "backend": "local",
                "store": str(self.root),
                "launcher": launcher,
                "retry": retry,
                "models": {"tiny": str(self.lm)},
                "resources": {"train": {"ranks_per_node": 2}},
            }
        )
        return Attempt(
            recipe=self.recipe(**options),
            cluster=cluster,
            resources=cluster.resources_of(stage),
            artifacts=(self.artifact(stage, name),),
            upstreams=({s: self.artifact(s) for s in ("tokenize", "pack", "train")},),
            lease_n=lease_n,
            folder=folder,
            record=AttemptFolder(lease_n, Storage(str(folder))),
        )

    def recipe(self, **options: object) -> Recipe:
        return Recipe.model_validate(
            {
                "name": "tiny",
                "corpus": {"sources": [{"name": "speech"}]},
                "encoder": {"model": "hubert", "revision": "0", "layer": 1},
                "tokenizer": {"num_clusters": NUM_UNITS},
                "split": {"valid": 0.2, "test": 0.2},
                "model": {"text_model": "tiny", "sha256": sha256_of(self.lm / "model.safetensors")},
                "train": {
                    "context_length": 16,
                    "global_batch_tokens": 64,
                    "steps": options.get("steps", STEPS),
                    "precision": "fp32",
                    "optimizer": {"lr": options.get("lr", 1e-2)},
                    "schedule": {"warmup_steps": 10},
                    "validate_every_steps": 200,
                    "checkpoint": {"every_steps": 100},
                },
                "evaluate": {
                    "perplexity": {"bootstrap_samples": 100},
                    "continuations": {"num_prompts": 2, "prompt_s": 0.5},
                },
                "tracking": options.get("tracking", {}),
            }
        )


TRACKING = {
    "wandb": {"project": "speech", "mode": "offline", "base_url": "${env:OWN_WANDB}"},
    "mlflow": {"experiment": "speech", "uri": "${env:OWN_MLFLOW}", "password": "${env:OWN_WORD}"},
}
PLANTED = ("planted-password", "planted-user", "f00d" * 10)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OWN_MLFLOW", (root / "mlflow").as_uri())
        patch.setenv("OWN_WORD", PLANTED[0])
        patch.setenv("OWN_WANDB", f"http://{PLANTED[1]}:{PLANTED[0]}@127.0.0.1:9")
        patch.setenv("WANDB_API_KEY", PLANTED[2])
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        yield make_world(root)


def make_world(root: Path) -> World:
    """A packed corpus and a text LM, both tiny."""
    make_lm(root / "lm")
    made = World(root, root / "lm")
    write_units(Path(made.artifact("tokenize").storage.url))
    pack.work(made.attempt("pack"))
    return made


def write_units(folder: Path) -> None:
    """Three shards of utterances that climb or fall, which one unit alone does not tell."""
    rng = np.random.default_rng(0)
    (folder / "shards" / "000").mkdir(parents=True)
    for shard in range(3):
        units = []
        for _ in range(40):
            said, step = [int(rng.integers(NUM_UNITS))], 1
            for _ in range(int(rng.integers(20, 40))):
                step = step if rng.random() < 0.95 else -step
                said.append((said[-1] + step) % NUM_UNITS)
            units.append(np.array(said, dtype=np.uint16))
        table = pa.table(
            {
                "id": [f"{shard}-{n}" for n in range(40)],
                "recording": [f"{shard}-{n}" for n in range(40)],
                "units": pa.array(units, pa.list_(pa.uint16())),
                "durations": pa.array(units, pa.list_(pa.uint16())),
                "num_samples": pa.array([640 * len(u) for u in units], pa.int64()),
            }
        )
        pq.write_table(table, folder / "shards" / "000" / f"{shard:06d}.parquet")


@pytest.fixture(scope="module")
def trained(world: World) -> Artifact:
    """The train artifact: its first attempt was asked to stop, the second finished it."""
    first = world.attempt("train", tracking=TRACKING)
    out = first.out
    lose = threading.Thread(target=when, args=(lambda: len(checkpoints.committed(out)) > 0, first))
    lose.start()
    with pytest.raises(LeaseHeldError, match="lost to 2"):
        train.work(first)
    lose.join()
    stopped_at = checkpoints.committed(out)[-1].step
    assert 100 < stopped_at < STEPS, "the ranks did not save when they were asked to stop"

    facts = train.work(world.attempt("train", lease_n=2, tracking=TRACKING))
    assert facts["steps"] == STEPS
    assert [(s["lease_n"], s["first_step"]) for s in facts["history"]] == [
        (1, 1),
        (2, stopped_at + 1),
    ]
    return world.artifact("train")


def when(happened: Callable[[], bool], attempt: Attempt) -> None:
    """Take the lease away once something has happened."""
    deadline = time.monotonic() + 400
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.01)
    attempt._lost = "lease 1 was lost to 2"


def test_the_curve_has_no_gap_and_learns(trained: Artifact) -> None:
    lines = [json.loads(line) for line in trained.storage.read_bytes("metrics.jsonl").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert set(lines[0]) == {"step", "loss", "lr", "grad_norm", "tokens_seen", "sample_hash"}
    assert lines[0]["loss"] == pytest.approx(math.log(NUM_UNITS), rel=0.05)
    assert np.mean([line["loss"] for line in lines[-20:]]) < 0.6 * lines[0]["loss"]
    validated = [
        json.loads(line) for line in trained.storage.read_bytes("validation.jsonl").splitlines()
    ]
    assert [line["step"] for line in validated] == [200, 400]


def test_the_attempt_keeps_logs_curves_and_progress(world: World, trained: Artifact) -> None:
    folder = world.root / "runs" / "train-0" / "attempts" / "0002"
    assert {p.name for p in folder.glob("rank-*.log")} == {"rank-00000.log", "rank-00001.log"}
    assert json.loads((folder / "progress.json").read_text())["done"] == STEPS
    steps = list(AttemptFolder(2, Storage(str(folder))).steps())
    assert [step["step"] for step in steps] == list(range(steps[0]["step"], STEPS + 1))
    assert all(step["step_s"] > 0 for step in steps)
    assert any(step["stall_s"] > 0 for step in steps)


def curves_of(world: World) -> Iterator[tuple[str, dict[str, list[tuple[int, float]]]]]:
    """Training and validation loss of the one run that each tracker knows, by step."""
    beside, names = world.root / "runs" / "train-0", ("train/loss", "valid/loss")
    events = EventAccumulator(str(beside / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    yield "TensorBoard", {n: [(p.step, p.value) for p in events.Scalars(n)] for n in names}
    (run,) = offline_wandb.folders(beside / "wandb")
    rows = offline_wandb.history(run)
    yield "W&B", {n: [(row["_step"], row[n]) for row in rows if n in row] for n in names}
    client = MlflowClient(tracking_uri=(world.root / "mlflow").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("speech").experiment_id])
    history = partial(client.get_metric_history, found.info.run_id)
    yield "MLflow", {n: [(p.step, p.value) for p in history(n)] for n in names}


def test_each_tracker_has_one_run_with_the_curves_of_the_artifact(
    world: World, trained: Artifact
) -> None:
    files = {"train/loss": "metrics.jsonl", "valid/loss": "validation.jsonl"}
    for tracker, curves in curves_of(world):
        for name, file in files.items():
            lines = [json.loads(x) for x in trained.storage.read_bytes(file).splitlines()]
            expected = [(line["step"], line["loss"]) for line in lines]
            told = dict(curves[name])
            assert len(told) == len(curves[name])
            assert list(told) == [step for step, _ in expected], (tracker, name)
            assert told == pytest.approx(dict(expected), rel=1e-6), (tracker, name)


def test_rates_are_in_the_curves_too(world: World, trained: Artifact) -> None:
    curves = EventAccumulator(str(world.root / "runs" / "train-0" / "tensorboard"))
    curves.Reload()
    assert curves.Scalars("train/checkpoint_stall_s")
    assert all(point.value > 0 for point in curves.Scalars("train/tokens_per_s"))


def test_secrets_are_in_nothing_that_was_written(world: World, trained: Artifact) -> None:
    files = [path for path in world.root.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for secret in PLANTED:
        assert [str(path) for path in files if secret.encode() in path.read_bytes()] == []


def test_ray_train_gives_the_same_model(world: World, trained: Artifact) -> None:
    facts = train.work(world.attempt("train", name="1", launcher="ray_train"))
    assert facts["steps"] == STEPS
    other = world.artifact("train", "1").storage
    for name in ("model/model.safetensors", "metrics.jsonl", "validation.jsonl"):
        assert other.read_bytes(name) == trained.storage.read_bytes(name), name


@pytest.fixture
def standby(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process that forks this process's ranks."""
    monkeypatch.setenv(STANDBY, secrets.token_hex(16))
    with subprocess.Popen([sys.executable, "-m", "jobs.training.standby"]) as process:
        yield process
        process.kill()


def test_ranks_that_a_standby_forks_give_the_same_model(
    world: World, trained: Artifact, standby: subprocess.Popen[bytes]
) -> None:
    attempt, parents = world.attempt("train", name="6"), set[int]()

    def look() -> None:
        beats = attempt.folder / "beats" / "rank-00001.json"
        while not (beats.exists() and beats.read_bytes()):
            time.sleep(0.05)
        pid = json.loads(beats.read_bytes())["process"]["pid"]
        parents.add(psutil.Process(pid).ppid())

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    train.work(attempt)
    looking.join()
    assert parents == {standby.pid}
    for name in ("model/model.safetensors", "metrics.jsonl", "validation.jsonl"):
        assert attempt.out.read_bytes(name) == trained.storage.read_bytes(name), name


def test_perplexity(world: World, trained: Artifact) -> None:
    attempt = world.attempt("perplexity", tracking=TRACKING)
    facts = perplexity.work(attempt)
    scores = attempt.out.read_json("scores.json")
    assert facts["splits"] == scores["splits"]
    for split in ("valid", "test"):
        found = {name: score["perplexity"] for name, score in scores["splits"][split].items()}
        assert found["model"] < found["bigram"] < found["unigram"]
        nll = pq.read_table(Path(attempt.out.url) / f"{split}.nll.parquet")
        num_scored = sum(nll["num_scored"].to_pylist())
        for name, column in (("model", "nll"), ("bigram", "bigram_nll")):
            mean = sum(nll[column].to_pylist()) / num_scored
            assert math.exp(mean) == pytest.approx(found[name])
    (run,) = offline_wandb.folders(world.root / "runs" / "perplexity-0" / "wandb")
    assert offline_wandb.run_id(run) == trained.storage.read_json("notes/curves.json")["id"]
    told = offline_wandb.summary(run)["scores/perplexity/valid/model/perplexity"]
    assert told == scores["splits"]["valid"]["model"]["perplexity"]


def test_continuations(world: World, trained: Artifact) -> None:
    attempt = world.attempt("continuations")
    assert continuations.work(attempt) == {"num_continuations": 2}
    said = attempt.out.read_json("continuations.json")
    assert [len(c["continuation"]) for c in said] == [64, 64]
    assert all(0 <= unit < NUM_UNITS for c in said for unit in c["continuation"])


def test_a_rank_that_fails_is_quoted(world: World) -> None:
    with pytest.raises(RunFailedError) as raised:
        train.work(world.attempt("train", name="2", lr=1e30))
    said = str(raised.value)
    assert "lower the learning rate" in said
    assert str(world.root / "runs" / "train-2" / "attempts" / "0001" / "rank-0000") in said


def test_ranks_end_with_a_killed_driver(world: World) -> None:
    code = (
        "import pathlib, sys; sys.path.insert(0, sys.argv[1]);"
        "from test_train import World; from jobs import train;"
        "root = pathlib.Path(sys.argv[2]);"
        "train.work(World(root, root / 'lm').attempt('train', name='3', steps=100_000))"
    )
    argv = [sys.executable, "-c", code, str(Path(__file__).parent), str(world.root)]
    driver = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    out, deadline = world.artifact("train", "3").storage, time.monotonic() + 400
    while not checkpoints.committed(out):
        assert driver.poll() is None, "the driver ended by itself"
        assert time.monotonic() < deadline, "training never began"
        time.sleep(0.05)
    ranks = psutil.Process(driver.pid).children(recursive=True)
    assert len(ranks) >= 2
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert not alive
