"""HuBERT's masked prediction on real ranks: it learns, resumes to the bit, moves to other ranks."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
import torch

from jobs.audio import places
from jobs.audio.corpus_tables import CorpusTables
from jobs.audio.roots import Root
from jobs.speech import sample, targets
from jobs.speech.lloyd import BlocksInMemory, fit
from jobs.speech.pretrain import OPTIMIZER, TASK, MaskedPredictionSpec
from jobs.speech.units import write_codebook
from jobs.training.rank import TrainingSettings
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Checkpoint, Corpus, Pretrain, Source
from tests.chaos.points import RANK_POINTS
from tests.corpora import make_corpus, sampled
from tests.training import Training

pytestmark = pytest.mark.slow

STEPS = 80
COMMIT_POINTS = ("commit.gathered", "commit.metrics", "commit.manifest")
SMALL = Pretrain.model_validate(
    {
        "conv_dim": (8, 16),
        "conv_kernel": (20, 18),
        "conv_stride": (20, 16),
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 32,
        "crop_s": 0.6,
        "warmup_steps": 2,
        "mask_length": 4,
        "lr": 1e-2,
        "iterations": [{"num_clusters": 5, "steps": STEPS}],
    }
)


@dataclass(frozen=True, kw_only=True)
class Pretraining(Training):
    """The first iteration of a tiny HuBERT."""

    precision: Literal["fp32", "bf16"] = "fp32"

    def trained(self) -> dict[str, Any]:
        """Masked prediction in place of the language model."""
        roots = {"s": Root(self.inputs / "speech")}
        spec = MaskedPredictionSpec(
            pretrain=SMALL.model_copy(update={"precision": self.precision}),
            number=1,
            corpus_url=str(self.inputs / "corpus"),
            targets_url=str(self.inputs / "targets"),
            places=places.folder_of(roots),
            roots=roots,
        )
        settings = TrainingSettings(
            steps=STEPS,
            global_batch=SMALL.batch_size,
            seed=SMALL.seed,
            optimizer=OPTIMIZER.model_copy(update={"lr": SMALL.lr}),
            precision=self.precision,
            checkpoint=Checkpoint(every_steps=self.every_steps),
        )
        return {"task": TASK, "spec": spec.model_dump(mode="json"), "settings": settings}

    def results(self) -> dict[str, bytes]:
        """The encoder and its curve."""
        names = ("config.json", "model.safetensors", "metrics.jsonl")
        return {name: self.out.read_bytes(name) for name in names}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of tones of five pitches, 0.2 s each, and its targets."""
    folder = tmp_path_factory.mktemp("inputs")
    torch.set_num_threads(1)
    (folder / "speech" / "en").mkdir(parents=True)
    rng = np.random.default_rng(0)
    tones = [np.sin(2 * np.pi * f * np.arange(3200) / 16_000) for f in (200, 500, 1100, 2300, 4700)]
    for number in range(4):
        wave = np.concatenate([tones[i] for i in rng.integers(5, size=25)])
        noise = 0.001 * rng.normal(size=len(wave))
        soundfile.write(folder / f"speech/en/{number}.wav", wave / 2 + noise, 16_000)
    roots = {"s": Root(folder / "speech")}
    corpus = Corpus(sources=(Source(name="s"),))
    make_targets(folder, make_corpus(Storage(str(folder / "corpus")), corpus, roots), roots)
    return folder


def make_targets(folder: Path, tables: CorpusTables, roots: dict[str, Root]) -> None:
    out = Storage(str(folder / "targets"))
    found = sampled(tables, roots, hours=SMALL.max_hours, seed=SMALL.seed)
    sample.keep(out, found)
    blocks = targets.AudioBlocks.of(sample.read(out, tables), SMALL)
    worker = targets.TargetWorker(None, blocks.grid, roots, out.url)
    (block,) = blocks.blocks
    sample_MD = worker(targets.TargetTask(block=0, utterances=block, count=10_000))
    assert sample_MD is not None
    scaling = targets.scaling_of(sample_MD, standardise=True)
    fitted = fit(BlocksInMemory([targets.scaled(sample_MD, scaling)]), 5, seed=0)
    write_codebook(out, fitted, **scaling)
    worker(targets.TargetTask(block=0, utterances=block))


@pytest.fixture(scope="module")
def alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Pretraining:
    """A training of one rank that nothing happened to."""
    training = Pretraining(inputs=inputs, root=tmp_path_factory.mktemp("alone"), micro_batch=4)
    assert training.run(world_size=1) == [0]
    return training


def test_it_learns_more_than_how_often_each_target_occurs(inputs: Path, alone: Pretraining) -> None:
    labels_T = targets.read_labels(Storage(str(inputs / "targets")), 0)
    share_K = np.bincount(labels_T) / len(labels_T)
    entropy = -(share_K * np.log(share_K)).sum() * (1 + SMALL.unmasked_weight)
    losses = [line["loss"] for line in alone.lines()]
    assert np.mean(losses[-10:]) < 0.8 * entropy < np.mean(losses[:3])


def test_it_learns_as_much_in_bf16(inputs: Path, alone: Pretraining, tmp_path: Path) -> None:
    training = Pretraining(
        inputs=inputs, root=tmp_path, micro_batch=4, precision="bf16", zero_stage=1
    )
    assert training.run(world_size=1) == [0]
    losses, exact = ([line["loss"] for line in t.lines()] for t in (training, alone))
    assert losses != exact
    assert np.mean(losses[-10:]) == pytest.approx(np.mean(exact[-10:]), rel=0.1)


def test_killed_at_random_and_resumed_it_gives_the_same_weights(
    inputs: Path, alone: Pretraining, tmp_path: Path
) -> None:
    training = Pretraining(inputs=inputs, root=tmp_path, micro_batch=4)
    order = random.Random(5)
    # Two checkpoints may be under way: four are begun before each kill.
    for lease_n, steps in ((1, (32, 40)), (2, (72,))):
        point, step = order.choice((*RANK_POINTS, *COMMIT_POINTS)), order.choice(steps)
        fault = {"kind": "kill", "point": point, "rank": 0, "step": step}
        assert training.run(lease_n, world_size=1, fault=fault) == [-9]
    assert training.run(3, world_size=1) == [0]
    assert training.results() == alone.results()
    history = training.out.read_json("training.json")["history"]
    assert [span["lease_n"] for span in history] == [1, 2, 3], "one began anew"


def test_two_ranks_go_on_with_the_samples_of_one(
    inputs: Path, alone: Pretraining, tmp_path: Path
) -> None:
    training = Pretraining(inputs=inputs, root=tmp_path, micro_batch=2)
    fault = {"kind": "kill", "point": "commit.manifest", "rank": 0, "step": 16}
    assert training.run(1, world_size=1, fault=fault) == [-9]
    assert training.run(2, world_size=2) == [0, 0]
    spans = training.out.read_json("training.json")["history"]
    assert [span["world_size"] for span in spans] == [1, 2]
    for one, two in zip(alone.lines(), training.lines(), strict=True):
        assert two["sample_hash"] == one["sample_hash"]
        assert two["loss"] == pytest.approx(one["loss"], rel=0.02)
