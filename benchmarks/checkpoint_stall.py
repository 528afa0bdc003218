"""How long training stands still for a checkpoint: ``python -m benchmarks.checkpoint_stall``.

Ours writes to the node's disk and lets a thread publish to the store; the rival is DeepSpeed's own
``save_checkpoint`` straight to that store. Both stores take the same number of bytes a second. The
two alternate in one training of one rank, which goes on between checkpoints, as long as ours needs
to publish.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.step_time import make_inputs, rank_config
from jobs.lm.task import LanguageModel
from jobs.training import faults
from jobs.training.checkpointer import Checkpointer, Progress
from jobs.training.engine import Engine, connect, prepare
from jobs.training.rank import RankConfig, RankInfo
from orchestrator.quantities import format_bytes

MB_PER_S = 40.0
HIDDEN_SIZE, NUM_LAYERS = 320, 6


def main() -> None:
    """Alternate the two and print what they cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--mb-per-s", type=float, default=MB_PER_S, help="what the store takes")
    options = parser.parse_args()
    os.environ[faults.VARIABLE] = json.dumps({"kind": "slow_store", "mb_per_s": options.mb_per_s})
    with tempfile.TemporaryDirectory(prefix="stall-") as folder:
        rank = multiprocessing.get_context("spawn").Process(
            target=_rank, args=(folder, options.rounds, options.mb_per_s)
        )
        rank.start()
        rank.join()


def _rank(folder: str, rounds: int, mb_per_s: float) -> None:
    root = Path(folder)
    inputs = make_inputs(root, hidden_size=HIDDEN_SIZE, num_layers=NUM_LAYERS)
    config = rank_config(inputs, root / "run", steps=1)
    rank_info = RankInfo(rank=0, world_size=1, local_rank=0, local_world_size=1)
    prepare(config)
    group = connect(config, rank_info)
    task, checkpointer = LanguageModel(config, group), Checkpointer(config, group)
    engine, progress = checkpointer.resume(task)
    train = _training(engine, task, config)
    pairs = []
    for number in range(rounds + 1):
        ours_s = _two_tier(checkpointer, engine, progress, train)
        theirs_s, num_bytes = _straight(engine, root / "straight", train)
        if number:  # the first of each warms up
            pairs.append((ours_s, theirs_s))
    _report(pairs, num_bytes, mb_per_s)


def _training(engine: Engine, task: LanguageModel, config: RankConfig) -> Iterator[None]:
    """Steps without end."""
    micro_batch = config.execution.micro_batch
    while True:
        tokens_BL1 = task.read(np.arange(config.settings.global_batch))
        parts = tokens_BL1.split(micro_batch)
        for n, part in enumerate(parts):
            engine.accumulate(part, last=n == len(parts) - 1)
        engine.step()
        yield


def _two_tier(
    checkpointer: Checkpointer, engine: Engine, progress: Progress, train: Iterator[None]
) -> float:
    """Seconds that our checkpoint stops a training which goes on until it is published."""
    next(train)
    progress.step += 1
    stall_s = checkpointer.save(engine, progress)
    while checkpointer.uploader.is_busy:
        next(train)
    checkpointer.drain()
    return stall_s


def _straight(engine: Engine, folder: Path, train: Iterator[None]) -> tuple[float, int]:
    """Seconds that a checkpoint stops training when it goes straight to the store; its bytes."""
    next(train)
    started = time.monotonic()
    engine.deepspeed.save_checkpoint(str(folder), tag="straight", save_latest=False)
    num_bytes = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    faults.uploading(num_bytes)
    stall_s = time.monotonic() - started
    shutil.rmtree(folder)
    return stall_s, num_bytes


def _report(pairs: list[tuple[float, float]], num_bytes: int, mb_per_s: float) -> None:
    ours, theirs = zip(*pairs, strict=True)
    ratios = [a / b for a, b in pairs]
    print(f"checkpoints of {format_bytes(num_bytes)}, a store of {mb_per_s:g} MB/s, one rank")
    for name, times in (("two tiers (ours)", ours), ("straight to the store", theirs)):
        print(
            f"  {name:22} {statistics.median(times):7.3f} s a checkpoint "
            f"({min(times):.3f} to {max(times):.3f})"
        )
    print(
        f"  ours over theirs       {statistics.median(ratios):7.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
