"""The training of one rank, from the last committed step to the finished model.

Knows nothing of launchers.

In: a RankConfig, this rank's Place, and a process group address in the environment. Out:
checkpoints while it runs; at the end ``model/`` in Hugging Face format, ``metrics.jsonl``,
``validation.jsonl`` and ``training.json`` in the artifact's folder.

Each global batch is the same for any number of ranks. Every window has the same number of targets,
so the mean of the ranks' and micro-batches' means is the mean over the global batch, exactly as
defined for one rank.

Shape legend: B sequences, L1 = context length + 1 tokens.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from jobs.lm import checkpoint as checkpoints
from jobs.lm.engine import connect, prepare
from jobs.lm.keeper import Keeper
from jobs.lm.rank import Place, RankConfig, end_with
from jobs.lm.token_stream import TokenStream, chain_hash, open_tokens, stripe
from jobs.lm.tracking import Tracker
from orchestrator.errors import RunFailedError
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Schedule

MODEL_FOLDER = "model"
METRICS = "metrics.jsonl"
VALIDATION = "validation.jsonl"
TRAINING = "training.json"
LIVE_EVERY_S = 2.0

_COSINE_FLOOR = 0.1
_MAX_VALID_WINDOWS = 256


def learning_rate(step: int, *, schedule: Schedule, peak: float, steps: int) -> float:
    """The learning rate of optimizer step 1, 2, ... ``steps``.

    Linear warm-up to the peak, then constant; or peak * sqrt(warmup / step) (arXiv 1706.03762, eq.
    3); or half a cosine down to a tenth of the peak at the last step.
    """
    warmup = max(schedule.warmup_steps, 1)
    if step <= warmup:
        return peak * step / warmup
    if schedule.kind == "constant":
        return peak
    if schedule.kind == "inverse_sqrt":
        return peak * math.sqrt(warmup / step)
    done = (step - warmup) / max(steps - warmup, 1)
    return peak * (_COSINE_FLOOR + (1 - _COSINE_FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))


def train_rank(config: RankConfig, place: Place) -> None:
    """Run this rank until the last step, or a checkpoint after a wish to stop, is committed."""
    end_with(config.driver)
    prepare(config)
    group = connect(config, place)
    rank = Rank(config, place, group)
    rank.run()
    dist.barrier(group=group)
    dist.destroy_process_group()


class Rank:
    """One rank at work."""

    def __init__(self, config: RankConfig, place: Place, group: Any) -> None:
        self._config, self._place, self._group = config, place, group
        self._out, self._folder = Storage(config.out_url), Path(config.folder)
        self._live_at = 0.0
        self._stop_seen = False
        self._stop_agreed = False
        train_bin, valid_bin = self._fetch_tokens("train.bin", "valid.bin")
        self._stream = TokenStream(
            open_tokens(train_bin), context_length=config.train.context_length, seed=config.seed
        )
        self._valid_BL1 = validation_windows(open_tokens(valid_bin), config.train.context_length)
        self._keeper = Keeper(config, place, group)
        self._engine, self._progress = self._keeper.resume()

    @property
    def _leads(self) -> bool:
        return self._place.rank == 0

    def run(self) -> None:
        """Train from where the progress stands; finish when the last step is done."""
        config = self._config
        with Tracker(self._folder, enabled=config.tensorboard and self._leads) as tracker:
            for batch in self._batches():
                self._take_step(batch, tracker)
                stop = self._stop_agreed
                if self._is_due(config.train.validate_every_steps):
                    self._validate(tracker)
                if stop or self._is_due(config.train.checkpoint.every_steps):
                    self._keeper.save(self._engine, self._progress)
                if stop:
                    return
        self._finish()

    def _take_step(self, micro_batches: list[torch.Tensor], tracker: Tracker) -> None:
        started_s = time.perf_counter()
        train, progress = self._config.train, self._progress
        progress.step += 1
        lr = learning_rate(
            progress.step, schedule=train.schedule, peak=train.optimizer.lr, steps=train.steps
        )
        self._engine.set_lr(lr)
        losses = [
            self._engine.accumulate(tokens_BL1, last=n == len(micro_batches) - 1)
            for n, tokens_BL1 in enumerate(micro_batches)
        ]
        grad_norm = self._engine.step()
        loss = self._mean_over_ranks(torch.stack(losses).mean())
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise RunFailedError(
                f"train step {progress.step}: loss {loss}, gradient norm {grad_norm}; lower "
                "train.optimizer.lr or lengthen train.schedule.warmup_steps"
            )
        progress.sample_hash = chain_hash(progress.sample_hash, self._sample_ids(progress.step))
        if self._leads:
            self._record(loss, lr, grad_norm, time.perf_counter() - started_s, tracker)

    def _record(
        self, loss: float, lr: float, grad_norm: float, step_s: float, tracker: Tracker
    ) -> None:
        progress, train = self._progress, self._config.train
        line = {
            "step": progress.step,
            "loss": loss,
            "lr": lr,
            "grad_norm": grad_norm,
            "tokens_seen": progress.step * train.global_batch_tokens,
            "sample_hash": progress.sample_hash,
        }
        progress.metric_lines.append(line)
        with (self._folder / "metrics-0001.jsonl").open("a") as file:
            file.write(json.dumps({**line, "step_s": step_s}) + "\n")
        tracker.scalars("train", progress.step, {"loss": loss, "lr": lr, "grad_norm": grad_norm})
        self._show(loss=loss, tokens_per_s=train.global_batch_tokens / step_s)

    def _show(self, **rates: float) -> None:
        """Say how far we are, for the driver, which may be on another machine."""
        now = time.monotonic()
        if now - self._live_at < LIVE_EVERY_S and self._progress.step < self._config.train.steps:
            return
        self._live_at = now
        live = {
            "step": self._progress.step,
            "rates": rates,
            "resumed_from": self._keeper.resumed_from,
            "refused": self._keeper.refused,
        }
        self._out.replace(self._config.live_path, json.dumps(live).encode())
        self._stop_seen = self._stop_seen or self._out.exists(self._config.stop_path)

    def _mean_over_ranks(self, loss: torch.Tensor) -> float:
        """The loss over the global batch.

        The same message carries the wish to stop that rank 0 has seen, so that all ranks act on it
        after the same step.
        """
        message = torch.tensor([float(loss), float(self._stop_seen)], dtype=torch.float64)
        dist.all_reduce(message, group=self._group)
        self._stop_agreed = bool(message[1])
        return float(message[0]) / self._place.world_size

    @torch.no_grad()
    def _validate(self, tracker: Tracker) -> None:
        """Mean NLL over the validation windows; as many forward passes on each rank, for ZeRO 3."""
        windows_BL1, place, model = self._valid_BL1, self._place, self._engine.model
        if not len(windows_BL1):
            return
        model.eval()
        size = self._config.execution.micro_batch
        total = torch.zeros(1, dtype=torch.float64)
        for start in range(0, len(windows_BL1), size * place.world_size):
            mine = windows_BL1[start + place.rank * size : start + (place.rank + 1) * size]
            batch = torch.from_numpy(mine if len(mine) else windows_BL1[:1])
            total += float(self._engine.loss(batch)) * len(mine)
        model.train()
        dist.all_reduce(total, group=self._group)
        loss = float(total) / len(windows_BL1)
        if self._leads:
            line = {"step": self._progress.step, "loss": loss, "num_windows": len(windows_BL1)}
            self._progress.validation_lines.append(line)
            tracker.scalars("valid", self._progress.step, {"loss": loss})

    def _is_due(self, every_steps: int) -> bool:
        return (
            self._progress.step % every_steps == 0
            or self._progress.step == self._config.train.steps
        )

    def _sample_ids(self, step: int) -> np.ndarray:
        batch = self._config.train.global_batch
        return self._stream.sample_ids((step - 1) * batch, batch)

    def _micro_batches(self, step: int) -> list[torch.Tensor]:
        ids = stripe(
            self._sample_ids(step), rank=self._place.rank, world_size=self._place.world_size
        )
        tokens_BL1 = torch.from_numpy(self._stream.windows(ids))
        if self._config.device == "cuda":
            tokens_BL1 = tokens_BL1.pin_memory()
        return list(tokens_BL1.split(self._config.execution.micro_batch))

    def _batches(self) -> Iterator[list[torch.Tensor]]:
        """The micro-batches of each remaining step, read one step ahead of the computation."""
        steps = range(self._progress.step + 1, self._config.train.steps + 1)
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = reader.submit(self._micro_batches, steps[0]) if steps else None
            for step in steps:
                batch = ahead.result()
                ahead = reader.submit(self._micro_batches, min(step + 1, steps[-1]))
                yield batch

    def _fetch_tokens(self, *names: str) -> list[Path]:
        """Local token files; on each node the first rank brings them from a remote store."""
        pack, cache = Storage(self._config.pack_url), self._folder / "tokens"
        if self._place.local_rank == 0:
            for name in names:
                pack.fetch(name, cache)
        dist.barrier(group=self._group)
        return [(pack.local_root or cache) / name for name in names]

    def _finish(self) -> None:
        """Write what the finished artifact holds beyond checkpoints."""
        state = self._engine.state_dict()
        if not self._leads:
            return
        local = self._folder / "staging" / MODEL_FOLDER
        model = self._engine.model
        model.save_pretrained(local, state_dict=state)
        for path in sorted(local.iterdir()):
            self._publish(path, f"{MODEL_FOLDER}/{path.name}")
        self._out.replace(METRICS, checkpoints.join_segments(self._out, self._progress.metrics))
        self._out.replace(
            VALIDATION, checkpoints.join_segments(self._out, self._progress.validation)
        )
        self._out.replace(
            TRAINING, json.dumps(self._summary(model), indent=1, sort_keys=True).encode()
        )
        shutil.rmtree(self._folder / "staging")

    def _publish(self, local: Path, path: str) -> None:
        # Not yet covered by a manifest: what an earlier attempt left here may differ, and is
        # replaced.
        self._out.delete(path)
        self._out.upload(local, path)

    def _summary(self, model: Any) -> dict[str, Any]:
        progress, train = self._progress, self._config.train
        return {
            "num_parameters": model.num_parameters(),
            "steps": progress.step,
            "tokens_seen": progress.step * train.global_batch_tokens,
            "num_windows": self._stream.num_windows,
            "epochs": progress.step * train.global_batch / self._stream.num_windows,
            "sample_hash": progress.sample_hash,
            "history": [stint.model_dump() for stint in progress.history],
        }


def validation_windows(tokens: np.ndarray, context_length: int) -> np.ndarray:
    """``tokens_BL1``: at most 256 windows, evenly spread; one shorter one in a short split."""
    if len(tokens) < 2:
        return np.zeros((0, 0), dtype=np.int64)
    length = min(context_length, len(tokens) - 1)
    num_windows = (len(tokens) - 1) // length
    chosen = np.unique(
        np.linspace(0, num_windows - 1, min(num_windows, _MAX_VALID_WINDOWS)).astype(np.int64)
    )
    return np.stack([tokens[n * length : (n + 1) * length + 1] for n in chosen]).astype(np.int64)
