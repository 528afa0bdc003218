"""The time of a training step over two other loops': ``python -m benchmarks.step_time``.

Ours (``jobs.training.loop``: DeepSpeed, ZeRO 0), a loop written by hand (PyTorch, DDP among several
ranks), and Hugging Face's Trainer over DeepSpeed, one after the other in every round, as processes
of one thread on this machine's CPU, in fp32 over gloo. The same work is proved by the losses, which
must agree.

A step lasts from the end of the one before it to its own, so that everything a loop does between
steps counts. The first steps are warm-up, and the last, which ours ends with a checkpoint, is left
out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch

from benchmarks.rivals import plain_loop, trainer_loop
from jobs.lm.spec import TASK, LanguageModelSpec
from jobs.training.loop import train_rank
from jobs.training.rank import (
    RankConfig,
    RankInfo,
    TrainingSettings,
    failure,
    free_port,
    log_path,
    log_to,
)
from orchestrator.errors import RunFailedError
from orchestrator.ledger.lease import Process
from orchestrator.spec.recipe import Checkpoint, Execution, Model, Optimizer, Schedule

OURS, PLAIN, TRAINER = "ours", "plain loop", "Trainer"
LOOPS = (OURS, PLAIN, TRAINER)
WARM_UP_STEPS = 5
SAME_LOSS = 1e-3
"""How far apart the losses of the same work may lie, in nats."""

_CONTEXT_LENGTH, _GLOBAL_BATCH, _MICRO_BATCH, _NUM_UNITS = 128, 16, 4, 500
_FASTEST = 0.1
_NEVER = 1_000_000
_TIMEOUT_S = 900.0
_SPAWN = multiprocessing.get_context("forkserver")
_PRELOADED = (
    "deepspeed",
    "accelerate",
    "transformers.trainer",
    "transformers.models.llama.modeling_llama",
)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One run of one loop."""

    steps_s: list[float]
    """The steps after the warm-up."""
    losses: list[float]
    """Mean over the global batch, of each step."""

    @property
    def step_s(self) -> float:
        """The median step."""
        return statistics.median(self.steps_s)


def main() -> None:
    """Run all rounds and print a line for each comparison, and a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="steps of a run, warm-up included")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    if options.steps < WARM_UP_STEPS + 2:
        parser.error(f"--steps: {options.steps} leaves none to time; give {WARM_UP_STEPS + 2} up")
    # For the server from which the ranks are forked, too: it imports DeepSpeed for all of them.
    os.environ["DS_ACCELERATOR"] = "cpu"
    _SPAWN.set_forkserver_preload(["benchmarks.rivals", *_PRELOADED])
    with tempfile.TemporaryDirectory(prefix="step-time-") as name:
        inputs = make_inputs(Path(name))
        for num_ranks in options.ranks:
            rounds = [
                {loop: _run(loop, inputs, num_ranks, options.steps) for loop in LOOPS}
                for _ in range(options.rounds)
            ]
            _report(rounds, num_ranks, options.steps)


def _run(loop: str, inputs: Path, num_ranks: int, steps: int) -> Timing:
    """One training by one loop, in processes of its own. Raises RunFailedError."""
    with tempfile.TemporaryDirectory(dir=inputs) as name:
        folder = Path(name)
        config = rank_config(inputs, folder, steps)
        config_json, port = config.model_dump_json(), free_port()
        ranks = [
            _SPAWN.Process(
                target=_rank, args=(loop, config_json, rank, num_ranks, port), daemon=True
            )
            for rank in range(num_ranks)
        ]
        for rank in ranks:
            rank.start()
        _finish(ranks, loop, config)
        notes = [json.loads(path.read_text()) for path in sorted(folder.glob("notes-*.json"))]
    ends = [at for at, _ in notes[0]]
    # The loss of a rank is of its share or of the whole; the mean over the ranks is of the whole.
    losses = np.array([[loss for _, loss in steps] for steps in notes]).mean(0).tolist()
    lasted_s = [after - before for before, after in pairwise(ends)]  # of step 2 and so on
    return Timing(steps_s=lasted_s[WARM_UP_STEPS - 1 : -1], losses=losses)


def _finish(ranks: list[BaseProcess], loop: str, config: RankConfig) -> None:
    """Wait until every rank has ended or one has failed; whatever happens, none is left.

    Raises RunFailedError when not all have ended well.
    """
    deadline = time.monotonic() + _TIMEOUT_S
    running = {rank.sentinel for rank in ranks}
    try:
        while running and not any(rank.exitcode for rank in ranks):
            ended = wait(running, timeout=deadline - time.monotonic())
            if not ended:
                break
            running -= set(ended)
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    codes = [rank.exitcode for rank in ranks]
    if any(codes):
        raise failure(config, len(ranks), f"{loop}: exit codes {codes}")


def _rank(loop: str, config_json: str, rank: int, num_ranks: int, port: int) -> None:
    """One rank of one loop; leaves ``[time, loss]`` of each step in ``notes-<rank>.json``."""
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(port)
    config = RankConfig.model_validate_json(config_json)
    rank_info = RankInfo(
        rank=rank, world_size=num_ranks, local_rank=rank, local_world_size=num_ranks
    )
    log_to(log_path(Path(config.folder), rank))
    notes: list[tuple[float, float]] = []
    if loop == OURS:
        train_rank(config, rank_info)
        notes = _recorded(Path(config.record_url)) if rank == 0 else []
    else:
        run = plain_loop if loop == PLAIN else trainer_loop
        run(config, rank_info, lambda loss: notes.append((time.time(), loss)))
    if notes:
        (Path(config.folder) / f"notes-{rank}.json").write_text(json.dumps(notes))


def _recorded(record: Path) -> list[tuple[float, float]]:
    """When our loop's steps ended, and their losses, from what it records of them anyway."""
    segments = sorted(record.glob("metrics-*.jsonl"))
    lines = [json.loads(line) for path in segments for line in path.read_text().splitlines()]
    return [(line["at"], line["loss"]) for line in lines]


def rank_config(inputs: Path, folder: Path, steps: int) -> RankConfig:
    """The RankConfig of every loop's ranks."""
    return RankConfig(
        task=TASK,
        spec=LanguageModelSpec(
            model=Model(text_model="small", revision="0"),
            context_length=_CONTEXT_LENGTH,
            schedule=Schedule(warmup_steps=4),
            num_units=_NUM_UNITS,
            source=str(inputs / "lm"),
            pack_url=str(inputs / "pack"),
        ).model_dump(mode="json"),
        settings=TrainingSettings(
            steps=steps,
            global_batch=_GLOBAL_BATCH,
            seed=0,
            optimizer=Optimizer(lr=1e-3, weight_decay=0.01),
            precision="fp32",
            checkpoint=Checkpoint(every_steps=_NEVER),
            validate_every_steps=_NEVER,
        ),
        execution=Execution(zero_stage=0, micro_batch=_MICRO_BATCH),
        out_url=str(folder / "out"),
        lease_n=1,
        folder=str(folder),
        record_url=str(folder),
        scratch=str(folder / "scratch"),
        tracker="step-time",
        driver=Process.current(),
    )


def make_inputs(folder: Path, *, hidden_size: int = 192, num_layers: int = 4) -> Path:
    """A small text LM, and packed tokens with some structure to learn."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=hidden_size,
        intermediate_size=8 * hidden_size // 3,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        max_position_embeddings=_CONTEXT_LENGTH,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "lm")
    (folder / "pack").mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("train", 200_000), ("valid", 300)):
        tokens = np.cumsum(rng.integers(0, 3, size)) % _NUM_UNITS
        tokens.astype("<u2").tofile(folder / "pack" / f"{name}.bin")
    return folder


def _report(rounds: list[dict[str, Timing]], num_ranks: int, steps: int) -> None:
    """Print the comparison for one number of ranks."""
    print(
        f"{num_ranks} rank(s) of 1 thread: {_GLOBAL_BATCH} windows of {_CONTEXT_LENGTH} tokens in "
        f"micro-batches of {_MICRO_BATCH}; {len(rounds)} interleaved rounds, "
        f"{steps - WARM_UP_STEPS - 1} timed steps each; spread is that of the rounds, fastest the "
        f"{_FASTEST:.0%} quantile of all steps",
        _same_work(rounds[0]),
        f"  {'loop':<12}{'ms a step':>11}{'spread':>22}"
        f"{'ours over it':>14}{'spread':>18}{'fastest ms':>12}{'ours over it':>14}",
        *(_row(loop, rounds) for loop in LOOPS),
        sep="\n",
        flush=True,
    )


def _same_work(timings: dict[str, Timing]) -> str:
    """One line on how far the losses lie apart. Raises RunFailedError when it is too far."""
    losses = np.array([timings[loop].losses for loop in LOOPS])
    apart = np.ptp(losses, axis=0)
    if apart[0] > SAME_LOSS:
        apart_by = ", ".join(
            f"{loop} {loss:.4f}" for loop, loss in zip(LOOPS, losses[:, 0], strict=True)
        )
        raise RunFailedError(f"step 1: {apart_by}; not the same work, nothing can be compared")
    return (
        f"same work: the losses of step 1 lie within {apart[0]:.1e} nats of each other "
        f"(at most {SAME_LOSS}), those of all steps within {apart.max():.1e}; "
        f"ours falls from {losses[0, 0]:.3f} to {losses[0, -1]:.3f}"
    )


def _row(loop: str, rounds: list[dict[str, Timing]]) -> str:
    step_ms = [1e3 * timings[loop].step_s for timings in rounds]
    ratios = [timings[OURS].step_s / timings[loop].step_s for timings in rounds]
    fastest_ms = _fastest_ms(loop, rounds)
    row = f"  {loop:<12}{_median(step_ms, '.1f'):>11}{_range(step_ms, '.1f'):>22}"
    if loop == OURS:
        return f"{row}{'':>32}{fastest_ms:>12.1f}"
    row += f"{_median(ratios, '.3f'):>14}{_range(ratios, '.3f'):>18}"
    return f"{row}{fastest_ms:>12.1f}{_fastest_ms(OURS, rounds) / fastest_ms:>14.3f}"


def _fastest_ms(loop: str, rounds: list[dict[str, Timing]]) -> float:
    """The 10th percentile of all steps of all rounds: what a busy machine disturbs least."""
    steps_s = [step_s for timings in rounds for step_s in timings[loop].steps_s]
    return 1e3 * float(np.quantile(steps_s, _FASTEST))


def _median(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}}"


def _range(values: list[float], form: str) -> str:
    return f"{min(values):{form}} to {max(values):{form}}"


if __name__ == "__main__":
    main()
