"""A training that was killed and resumed equals one that never was, bit for bit."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.lm import checkpoint
from jobs.lm.loop import train_rank
from jobs.lm.rank import Place, RankConfig, free_port
from orchestrator.ledger.lease import Process
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Checkpoint, Execution, Model, Optimizer, Schedule, Train

pytestmark = pytest.mark.slow

STEPS, EVERY = 48, 8
_CONTEXT = multiprocessing.get_context("forkserver")
# Imports take seconds; the server makes them once and forks each rank from there.
_CONTEXT.set_forkserver_preload(["jobs.lm.loop", "transformers.models.llama.modeling_llama"])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text LM, and packed tokens with some structure to learn."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "lm")
    (folder / "pack").mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("train", 3_000), ("valid", 300)):
        (np.cumsum(rng.integers(0, 3, size)) % 20).astype("<u2").tofile(
            folder / "pack" / f"{name}.bin"
        )
    return folder


def config(
    inputs: Path, root: Path, *, zero_stage: int, lease_n: int = 1, micro_batch: int = 2
) -> RankConfig:
    folder = root / f"attempt-{lease_n}"
    folder.mkdir(parents=True)
    return RankConfig(
        model=Model(text_model="tiny", revision="0"),
        train=Train(
            context_length=16,
            global_batch_tokens=128,
            steps=STEPS,
            precision="fp32",
            optimizer=Optimizer(lr=3e-3, weight_decay=0.01),
            schedule=Schedule(warmup_steps=4),
            validate_every_steps=12,
            checkpoint=Checkpoint(every_steps=EVERY),
        ),
        execution=Execution(zero_stage=zero_stage, micro_batch=micro_batch),
        seed=3,
        num_units=20,
        source=str(inputs / "lm"),
        pack_url=str(inputs / "pack"),
        out_url=str(root / "out"),
        lease_n=lease_n,
        folder=str(folder),
        driver=Process.current(),
    )


def start(told: RankConfig, world_size: int = 2) -> list[BaseProcess]:
    port = free_port()
    ranks = [
        _CONTEXT.Process(target=_rank, args=(told.model_dump_json(), rank, world_size, port))
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    return ranks


def _rank(told: str, rank: int, world_size: int, port: int) -> None:
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(port)
    train_rank(
        RankConfig.model_validate_json(told),
        Place(rank=rank, world_size=world_size, local_rank=rank, local_world_size=world_size),
    )


def finish(ranks: list[BaseProcess]) -> list[int | None]:
    for rank in ranks:
        rank.join(240)
    return [rank.exitcode for rank in ranks]


def kill_after(out: Storage, step: int, victim: BaseProcess) -> None:
    """SIGKILL one rank as soon as the checkpoint of ``step`` is committed."""
    deadline = time.monotonic() + 400
    manifest = f"{checkpoint.FOLDER}/{checkpoint.name_of(step, 1)}/{checkpoint.MANIFEST}"
    while not out.exists(manifest):
        assert time.monotonic() < deadline, "the checkpoint never came"
        time.sleep(0.002)
    os.kill(victim.pid or 0, signal.SIGKILL)


def results(root: Path) -> dict[str, bytes]:
    names = ("model/model.safetensors", "metrics.jsonl", "validation.jsonl")
    return {name: (root / "out" / name).read_bytes() for name in names}


@pytest.mark.parametrize(("zero_stage", "corrupt"), [(0, False), (1, True)])
def test_killed_and_resumed_is_bit_identical(
    inputs: Path, tmp_path: Path, zero_stage: int, corrupt: bool
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert finish(start(config(inputs, whole, zero_stage=zero_stage))) == [0, 0]

    ranks = start(config(inputs, broken, zero_stage=zero_stage))
    out = Storage(str(broken / "out"))
    kill_after(out, 2 * EVERY, ranks[1])
    assert all(code != 0 for code in finish(ranks)), "a rank went on without its peer"
    newest = checkpoint.committed(out)[-1]
    assert newest.step < STEPS, "the kill came too late to prove anything"
    if corrupt:
        largest = max(newest.files, key=lambda name: newest.files[name].size)
        _flip_a_byte(broken / "out" / checkpoint.FOLDER / newest.name / largest)

    second = config(inputs, broken, zero_stage=zero_stage, lease_n=2)
    assert finish(start(second)) == [0, 0]
    live = out.read_json(second.live_path)
    expected_step = newest.step - EVERY if corrupt else newest.step
    assert live["resumed_from"] == checkpoint.name_of(expected_step, 1)
    assert ["bytes differ" in problem for problem in live["refused"]] == [True] * corrupt
    assert results(broken) == results(whole)
    steps = [json.loads(line)["step"] for line in results(broken)["metrics.jsonl"].splitlines()]
    assert steps == list(range(1, STEPS + 1))


def _flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_another_world_size_sees_the_same_batches(inputs: Path, tmp_path: Path) -> None:
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    assert finish(start(config(inputs, whole, zero_stage=1, micro_batch=4), world_size=1)) == [0]

    ranks = start(config(inputs, moved, zero_stage=1))
    kill_after(Storage(str(moved / "out")), 2 * EVERY, ranks[0])
    finish(ranks)
    second = config(inputs, moved, zero_stage=1, lease_n=2)
    assert finish(start(second, world_size=1)) == [0]
    assert Storage(str(moved / "out")).read_json(second.live_path)["resumed_from"]
    one, two = (
        [json.loads(line) for line in results(root)["metrics.jsonl"].splitlines()]
        for root in (whole, moved)
    )
    assert [line["sample_hash"] for line in one] == [line["sample_hash"] for line in two]
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose([a[name] for a in one], [b[name] for b in two], rtol=2e-3)
