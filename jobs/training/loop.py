"""The training of one rank, from the last committed step to the finished model.

Knows nothing of launchers.

In: a RankConfig, this rank's RankInfo, and a process group address in the environment. Out:
checkpoints while it runs; at the end ``model/`` in Hugging Face format, ``metrics.jsonl``,
``validation.jsonl`` and ``training.json`` in the artifact's folder.

Each global batch is the same for any number of ranks. Every window has the same number of targets,
so the mean of the ranks' and micro-batches' means is the mean over the global batch, exactly as
defined for one rank.

Shape legend: B sequences, L1 = context length + 1 tokens.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jobs.lm.batches import Batch, TokenBatches
from jobs.lm.flops import peak_flops
from jobs.training import faults
from jobs.training.checkpointer import Checkpointer
from jobs.training.engine import connect, prepare
from jobs.training.heartbeat import Heartbeat
from jobs.training.interval import CheckpointInterval
from jobs.training.rank import RankConfig, RankInfo, end_with
from jobs.training.tracking import Tracker
from orchestrator.errors import Cause, RunFailedError
from orchestrator.ledger import checkpoints
from orchestrator.ledger.lease import Process
from orchestrator.ledger.storage import Storage, to_json
from orchestrator.plan.token_order import chain_hash
from orchestrator.spec.recipe import Schedule

MODEL_FOLDER = "model"
METRICS = "metrics.jsonl"
VALIDATION = "validation.jsonl"
TRAINING = "training.json"

_COSINE_FLOOR = 0.1


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


def train_rank(config: RankConfig, rank_info: RankInfo) -> None:
    """Run this rank until the last step, or a checkpoint after a wish to stop, is committed."""
    end_with(config.driver)
    phases = Phases()
    with Heartbeat(config, rank_info) as heartbeat:
        prepare(config)
        phases.end("start")
        group = connect(config, rank_info)
        phases.end("connect")
        Rank(config, rank_info, group, heartbeat, phases).run()
        dist.barrier(group=group)
    dist.destroy_process_group()


class Phases:
    """How long each part of the way to the first step took, from the birth of the process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = Process.current().started_at

    def end(self, name: str) -> None:
        """Say that a phase is over, and that the next begins."""
        now = time.time()
        self.seconds[name] = now - self._since
        self._since = now


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What all ranks know and agree on after a step."""

    loss: float
    """Mean over the global batch."""
    stops: bool
    """Some rank was asked to leave."""
    saves: bool
    """Rank 0 finds that a checkpoint is due."""
    skips_save: bool
    """No time for another checkpoint: publish the one on its way, and leave."""


class Rank:
    """One rank at work."""

    def __init__(
        self,
        config: RankConfig,
        rank_info: RankInfo,
        group: Any,
        heartbeat: Heartbeat,
        phases: Phases,
    ) -> None:
        self._config, self._rank_info, self._group = config, rank_info, group
        self._heartbeat, self._phases = heartbeat, phases
        self._out = Storage(config.out_url)
        self._bad: list[Batch] = []
        """Batches in a row, up to now, whose loss or gradient was not finite."""
        self._batches = TokenBatches(config, rank_info, group)
        self._checkpointer = Checkpointer(config, rank_info, group, tick=heartbeat.published)
        self._engine, self._progress = self._checkpointer.resume()
        phases.end("load")
        self._interval = CheckpointInterval(
            config.train.checkpoint, mtbf_s=config.mtbf_s, step=self._progress.step
        )
        heartbeat.step = self._progress.step
        heartbeat.live |= {
            "resumed_from": self._checkpointer.resumed_from,
            "refused": self._checkpointer.refused,
            "phases": phases.seconds,
        }

    @property
    def _leads(self) -> bool:
        return self._rank_info.rank == 0

    def run(self) -> None:
        """Train from where the progress stands; finish when the last step is done."""
        config = self._config
        folder = Path(config.tensorboard) if config.tensorboard and self._leads else None
        with Tracker(folder, after_step=self._progress.step) as tracker:
            left = config.train.steps - self._progress.step
            cursor, skips = self._progress.cursor, self._checkpointer.skips
            for batch in self._batches.batches(left, cursor=cursor, skips=skips):
                started = time.perf_counter()
                verdict, line = self._take_step(batch)
                step_s = time.perf_counter() - started
                if self._validates():
                    self._validate(tracker)
                stall_s = self._save(verdict)
                if self._leads:
                    self._say(line, step_s, stall_s, tracker)
                self._give_up_on_bad_batches()
                if verdict.stops:
                    self._checkpointer.close()
                    self._heartbeat.live["stopped"] = True
                    return
        self._finish()

    def _take_step(self, batch: Batch) -> tuple[Verdict, dict[str, Any]]:
        train, progress, micro_batches = self._config.train, self._progress, batch.micro_batches
        self._checkpointer.uploader.raise_if_failed()
        progress.step += 1
        lr = learning_rate(
            progress.step, schedule=train.schedule, peak=train.optimizer.lr, steps=train.steps
        )
        self._engine.set_lr(lr)
        poisoned = faults.poisoned(batch.draw.positions)
        losses = []
        for n, tokens_BL1 in enumerate(micro_batches):
            last = n == len(micro_batches) - 1
            losses.append(self._engine.accumulate(tokens_BL1, last=last, poisoned=poisoned))
            self._heartbeat.tick("training")
        grad_norm = self._engine.step()
        verdict = self._agree(torch.stack(losses).mean())
        is_finite = math.isfinite(verdict.loss) and math.isfinite(grad_norm)
        self._bad = [] if is_finite else [*self._bad, batch]
        progress.cursor = batch.draw.cursor
        progress.sample_hash = chain_hash(progress.sample_hash, batch.draw.windows)
        line = {
            "step": progress.step,
            "loss": verdict.loss if is_finite else None,
            "lr": lr,
            "grad_norm": grad_norm if is_finite else None,
            "tokens_seen": progress.step * train.global_batch_tokens,
            "sample_hash": progress.sample_hash,
        }
        if self._leads:
            progress.metric_lines.append(line)
        self._heartbeat.step = progress.step
        if faults.stalls(rank=self._rank_info.rank, step=progress.step):
            os.kill(os.getpid(), signal.SIGSTOP)
        return verdict, line

    def _agree(self, loss: torch.Tensor) -> Verdict:
        """The loss over the global batch, and in the same message what to do after this step."""
        skips_save = (
            self._heartbeat.stop_seen
            and self._checkpointer.uploader.is_busy
            and self._checkpointer.uploader.took_s > self._config.notice_s
        )
        saves = self._leads and self._interval.is_due(self._progress.step)
        message = torch.tensor(
            [float(loss), float(self._heartbeat.stop_seen), float(saves), float(skips_save)],
            dtype=torch.float64,
        )
        dist.all_reduce(message, group=self._group)
        return Verdict(
            loss=float(message[0]) / self._rank_info.world_size,
            stops=bool(message[1]),
            saves=bool(message[2]),
            skips_save=bool(message[3]),
        )

    def _save(self, verdict: Verdict) -> float:
        """Make a checkpoint if one is due; how long training stood still, in seconds."""
        is_last = self._progress.step == self._config.train.steps
        must = (verdict.stops and not verdict.skips_save) or is_last
        # In a row of bad batches there is no checkpoint: a rollback must get behind them.
        may = verdict.saves and not self._bad
        if self._has_too_many_bad() or not (must or may):
            return 0.0
        self._heartbeat.phase = "saving"
        stall_s = self._checkpointer.save(self._engine, self._progress)
        self._interval.saved(
            self._progress.step,
            stall_s=stall_s - self._checkpointer.waited_s,
            publish_s=self._checkpointer.uploader.took_s,
        )
        self._heartbeat.tick("saving")
        return stall_s

    def _has_too_many_bad(self) -> bool:
        return len(self._bad) > self._config.train.max_nonfinite_in_row

    def _give_up_on_bad_batches(self) -> None:
        """Go back to the last checkpoint and around these batches, when there are too many.

        Raises RunFailedError on every rank; the next attempt finds the skip list.
        """
        if not self._has_too_many_bad():
            return
        self._checkpointer.drain()
        step = self._progress.step
        if self._leads:
            self._checkpointer.uploader.require_lease()
            positions = [int(p) for batch in self._bad for p in batch.draw.positions]
            checkpoints.note_skips(self._out, positions, at_step=step, lease_n=self._config.lease_n)
        dist.barrier(group=self._group)  # nobody ends the training before the note is written
        raise RunFailedError(
            f"train: step {step}: loss or gradient not finite {len(self._bad)} times in "
            "a row; rolled back, their windows are on the skip list; if it comes back, lower "
            "train.optimizer.lr or lengthen train.schedule.warmup_steps",
            cause=Cause.NONFINITE,
        )

    def _say(self, line: dict[str, Any], step_s: float, stall_s: float, tracker: Tracker) -> None:
        """Tell the attempt's folder and the curves what a step was like."""
        tokens_per_s = self._config.train.global_batch_tokens / step_s
        if "first_step" not in self._phases.seconds:
            self._phases.end("first_step")
        timed = {"at": time.time() - stall_s, "step_s": step_s, "stall_s": stall_s}
        self._heartbeat.record({**line, **timed})
        rates = {"loss": line["loss"], "grad_norm": line["grad_norm"], "lr": line["lr"]}
        rates |= {"tokens_per_s": tokens_per_s, "mfu": self._mfu(tokens_per_s)}
        rates["checkpoint_every_s"] = self._interval.interval_s
        known = {name: value for name, value in rates.items() if value is not None}
        self._heartbeat.live |= {"rates": known, "checkpoint_interval": self._interval.facts()}
        tracker.scalars(
            "train", line["step"], {**known, **({"checkpoint_stall_s": stall_s} if stall_s else {})}
        )

    def _mfu(self, tokens_per_s: float) -> float | None:
        """Share of the devices' peak that the model's own arithmetic takes; None on a CPU."""
        if self._config.device != "cuda":
            return None
        peak = peak_flops(torch.cuda.get_device_name())
        flops = self._engine.flops_per_token * tokens_per_s / self._rank_info.world_size
        return flops / peak if peak else None

    @torch.no_grad()
    def _validate(self, tracker: Tracker) -> None:
        """Mean NLL over the validation windows; as many forward passes on each rank, for ZeRO 3."""
        windows_BL1, rank_info, model = self._batches.valid_BL1, self._rank_info, self._engine.model
        if not len(windows_BL1):
            return
        model.eval()
        size = self._config.execution.micro_batch
        total = torch.zeros(1, dtype=torch.float64)
        for start in range(0, len(windows_BL1), size * rank_info.world_size):
            mine = windows_BL1[start + rank_info.rank * size : start + (rank_info.rank + 1) * size]
            batch = torch.from_numpy(mine if len(mine) else windows_BL1[:1])
            total += float(self._engine.loss(batch)) * len(mine)
            self._heartbeat.tick("validating")
        model.train()
        dist.all_reduce(total, group=self._group)
        loss = float(total) / len(windows_BL1)
        if self._leads:
            line = {"step": self._progress.step, "loss": loss, "num_windows": len(windows_BL1)}
            self._progress.validation_lines.append(line)
            tracker.scalars("valid", self._progress.step, {"loss": loss})

    def _validates(self) -> bool:
        step, train = self._progress.step, self._config.train
        return step % train.validate_every_steps == 0 or step == train.steps

    def _finish(self) -> None:
        """Write what the finished artifact holds beyond checkpoints."""
        self._heartbeat.tick("finishing")
        self._checkpointer.drain()
        state = self._engine.state_dict()
        if self._leads:
            self._publish_model(state)
            for name, segments in (
                (METRICS, self._progress.metrics),
                (VALIDATION, self._progress.validation),
            ):
                self._out.replace(name, checkpoints.join_segments(self._out, segments))
            self._out.replace(TRAINING, to_json(self._summary(self._engine.model)))
        self._checkpointer.close()

    def _publish_model(self, state: dict[str, torch.Tensor]) -> None:
        local = Path(self._config.scratch) / MODEL_FOLDER
        shutil.rmtree(local, ignore_errors=True)  # of an attempt that died here
        self._engine.model.save_pretrained(local, state_dict=state)
        for path in sorted(local.iterdir()):
            self._publish(path, f"{MODEL_FOLDER}/{path.name}")

    def _publish(self, local: Path, path: str) -> None:
        # Not yet covered by a manifest: what an earlier attempt left here may differ, and is
        # replaced.
        self._checkpointer.uploader.require_lease()
        self._out.delete(path)
        self._out.upload(local, path)
        self._heartbeat.tick("finishing")

    def _summary(self, model: Any) -> dict[str, Any]:
        progress, train = self._progress, self._config.train
        return {
            "num_parameters": model.num_parameters(),
            "steps": progress.step,
            "tokens_seen": progress.step * train.global_batch_tokens,
            "num_windows": self._batches.num_windows,
            "epochs": progress.step * train.global_batch / self._batches.num_windows,
            "global_batch": train.global_batch,
            "seed": self._config.seed,
            "skips": sorted(self._checkpointer.skips),
            "sample_hash": progress.sample_hash,
            "history": [span.model_dump() for span in progress.history],
        }
