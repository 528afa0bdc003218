"""The training of one rank, from the last committed step to the finished artifact.

Knows neither launchers nor what is trained.

In: a RankConfig, this rank's RankInfo, and a process group address in the environment. Out:
checkpoints while it runs; at the end the task's files, ``metrics.jsonl``, ``validation.jsonl`` and
``training.json`` in the artifact's folder.

Each global batch is the same for any number of ranks.
"""

from __future__ import annotations

import math
import os
import resource
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from jobs.disk import writing
from jobs.training import faults
from jobs.training.batches import Batch, batches
from jobs.training.checkpointer import SCRATCH, BuildEngine, Checkpointer
from jobs.training.engine import build_engine, connect, prepare
from jobs.training.group import RankGroup
from jobs.training.heartbeat import Heartbeat
from jobs.training.interval import CheckpointInterval
from jobs.training.mfu import PEAK_FLOPS
from jobs.training.rank import RankConfig, RankInfo, end_with
from jobs.training.task import Task, build_task
from jobs.training.uploader import files_below
from orchestrator.errors import Cause, RunFailedError
from orchestrator.ledger import checkpoints
from orchestrator.ledger import lease as leases
from orchestrator.ledger.lease import Process
from orchestrator.ledger.storage import Storage, to_json
from orchestrator.plan.token_order import chain_hash


def train_rank(config: RankConfig, rank_info: RankInfo) -> None:
    """Run this rank until the last step, or a checkpoint after a wish to stop, is committed."""
    end_with(config.driver)
    phases = Phases()
    with Heartbeat(config, rank_info) as heartbeat:
        prepare(config)
        phases.end("start")
        group = connect(config, rank_info)
        group.tick = heartbeat.tick
        phases.end("connect")
        Rank(config, group, build_task(config, group), heartbeat, phases).run()
        group.barrier()
    dist.destroy_process_group()


class Phases:
    """How long each part of the way to the first step took, from the birth of the process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic() - Process.current().age_s()

    def end(self, name: str) -> None:
        """Note that a phase is over and the next begins."""
        now = time.monotonic()
        self.seconds[name] = now - self._since
        self._since = now


class Verdict(NamedTuple):
    """What all ranks know and agree on after a step."""

    loss: float
    """Mean over the global batch."""
    stops: bool
    """Some rank was asked to leave."""
    saves: bool
    """Rank 0 finds that a checkpoint is due."""
    skips_save: bool
    """No time for another checkpoint: publish the one on its way, and leave."""
    has_failed: bool
    """Some rank could not publish its part of a checkpoint."""


class Rank:
    """One rank at work."""

    def __init__(
        self,
        config: RankConfig,
        group: RankGroup,
        task: Task,
        heartbeat: Heartbeat,
        phases: Phases,
        build: BuildEngine = build_engine,
    ) -> None:
        self._config, self._settings, self._group = config, config.settings, group
        self._task, self._heartbeat, self._phases = task, heartbeat, phases
        self._out = Storage(config.out_url)
        self._bad: list[Batch] = []
        """Batches in a row, up to now, whose loss or gradient was not finite."""
        self._checkpointer = Checkpointer(config, group, heartbeat.published, build=build)
        self._engine, self._progress = self._checkpointer.resume(task)
        phases.end("load")
        self._interval = CheckpointInterval(
            config.settings.checkpoint, mtbf_s=config.mtbf_s, step=self._progress.step
        )
        heartbeat.step = self._progress.step
        heartbeat.live |= {
            "resumed_from": self._checkpointer.resumed_from,
            "refused": self._checkpointer.refused,
            "phases": phases.seconds,
        }

    def run(self) -> None:
        """Train from where the progress stands; finish when the last step is done."""
        progress, settings = self._progress, self._settings
        following = batches(
            self._task,
            self._config,
            self._group.info,
            cursor=progress.cursor,
            count=settings.steps - progress.step,
            skips=self._checkpointer.skips,
        )
        for batch in following:
            started = time.perf_counter()
            verdict, line = self._take_step(batch)
            step_s = time.perf_counter() - started
            if verdict.has_failed:
                self._checkpointer.drain()  # raises on every rank what went wrong
            is_last = progress.step == settings.steps
            if is_last or progress.step % settings.validate_every_steps == 0:
                self._validate()
            stall_s = self._save(verdict)
            if self._group.leads:
                self._report(line, step_s, stall_s)
            self._give_up_on_bad_batches()
            if verdict.stops:
                self._checkpointer.close()
                self._heartbeat.live["stopped"] = True
                return
        self._finish()

    def _take_step(self, batch: Batch) -> tuple[Verdict, dict[str, Any]]:
        progress, micro_batches = self._progress, batch.micro_batches
        progress.step += 1
        lr = self._task.learning_rate(progress.step)
        self._engine.set_lr(lr)
        poisoned = faults.poisoned(batch.draw.positions)
        losses = []
        for n, micro_batch in enumerate(micro_batches):
            last = n == len(micro_batches) - 1
            losses.append(self._engine.accumulate(micro_batch, last=last, poisoned=poisoned))
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
            f"{self._task.unit}_seen": progress.step * self._units_per_step,
            "sample_hash": progress.sample_hash,
        }
        if self._group.leads:
            progress.metric_lines.append(line)
        self._heartbeat.step = progress.step
        if faults.stalls(rank=self._group.info.rank, step=progress.step):
            os.kill(os.getpid(), signal.SIGSTOP)
        return verdict, line

    def _agree(self, loss: torch.Tensor) -> Verdict:
        """The loss over the global batch, and in the same message what to do after this step."""
        uploader = self._checkpointer.uploader
        votes = (  # in the order of `Verdict`
            float(loss),
            self._heartbeat.stop_seen,
            self._group.leads and self._interval.is_due(self._progress.step),
            self._heartbeat.stop_seen
            and uploader.is_busy
            and uploader.took_s > self._config.notice_s,
            uploader.error is not None,
        )
        total = self._group.sum(torch.tensor([float(vote) for vote in votes], dtype=torch.float64))
        loss_sum, *answers = total.tolist()
        return Verdict(loss_sum / self._group.info.world_size, *map(bool, answers))

    @property
    def _units_per_step(self) -> float:
        return self._settings.global_batch * self._task.units_per_sample

    def _save(self, verdict: Verdict) -> float:
        """Make a checkpoint if one is due; how long training stood still, in seconds."""
        is_last = self._progress.step == self._settings.steps
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
        return len(self._bad) > self._settings.max_nonfinite_in_row

    def _give_up_on_bad_batches(self) -> None:
        """Go back to the last checkpoint and around these batches, when there are too many.

        Raises RunFailedError on every rank; the next attempt finds the skip list.
        """
        if not self._has_too_many_bad():
            return
        self._checkpointer.drain()
        step = self._progress.step
        if self._group.leads:
            leases.require_newest(self._out, self._config.lease_n)
            positions = [int(p) for batch in self._bad for p in batch.draw.positions]
            checkpoints.note_skips(self._out, positions, at_step=step, lease_n=self._config.lease_n)
        self._group.barrier()  # nobody ends the training before the note is written
        raise RunFailedError(
            f"{self._config.section}: loss or gradient not finite {len(self._bad)} times in a row, "
            f"up to step {step}; rolled back, their samples are on the skip list; if it comes "
            "back, lower the learning rate or lengthen its warm-up",
            cause=Cause.NONFINITE,
        )

    def _report(self, line: dict[str, Any], step_s: float, stall_s: float) -> None:
        """Write a step's line into the attempt's folder, with its times and rates."""
        if "first_step" not in self._phases.seconds:
            self._phases.end("first_step")
        timed = {"at": time.time() - stall_s, "step_s": step_s, "stall_s": stall_s}
        rates = {
            f"{self._task.unit}_per_s": self._units_per_step / step_s,
            "mfu": self._mfu(step_s),
            "peak_memory_bytes": self._peak_memory_bytes(),
            "checkpoint_every_s": self._interval.interval_s,
        }
        known = {name: value for name, value in rates.items() if value is not None}
        self._heartbeat.record({**line, **timed, **known})
        learned = {n: line[n] for n in ("loss", "grad_norm", "lr") if line[n] is not None}
        self._heartbeat.live |= {
            "rates": {**learned, **known},
            "checkpoint_interval": self._interval.facts(),
        }

    def _mfu(self, step_s: float) -> float | None:
        """Share of the devices' peak that the model's own arithmetic takes; None when unknown."""
        device = torch.cuda.get_device_name() if self._config.device == "cuda" else "cpu"
        peak = PEAK_FLOPS.get(device)
        flops = self._engine.flops_per_sample * self._settings.global_batch / step_s
        return flops / (peak * self._group.info.world_size) if peak and flops else None

    def _peak_memory_bytes(self) -> float:
        """Most memory that this rank has held so far: of its device, on a CPU its own."""
        if self._config.device == "cuda":
            return float(torch.cuda.max_memory_allocated())
        return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @torch.no_grad()
    def _validate(self) -> None:
        """Let the task validate; its line waits for the next checkpoint."""
        model = self._engine.model
        model.eval()
        fields = self._task.validate(self._engine.loss, self._group, self._heartbeat.tick)
        model.train()
        if fields and self._group.leads:
            self._progress.validation_lines.append({"step": self._progress.step, **fields})

    def _finish(self) -> None:
        """Write what the finished artifact holds beyond checkpoints."""
        self._heartbeat.tick("finishing")
        self._checkpointer.drain()
        state = self._engine.state_dict()
        if self._group.leads:
            self._publish(state)
            curves = {"metrics": self._progress.metrics, "validation": self._progress.validation}
            for name, segments in curves.items():
                lines = checkpoints.join_segments(self._out, segments)
                self._out.replace(f"{name}.jsonl", lines)
            self._out.replace("training.json", to_json(self._facts()))
        self._checkpointer.close()

    def _publish(self, state: dict[str, torch.Tensor]) -> None:
        local = Path(self._config.scratch) / "finished"
        shutil.rmtree(local, ignore_errors=True)  # of an attempt that died here
        with writing(local, SCRATCH):
            self._task.publish(self._engine.model, state, local)
        for path in files_below(local):
            leases.require_newest(self._out, self._config.lease_n)
            # No manifest covers it yet: what an earlier attempt left may differ, and is replaced.
            self._out.delete(path)
            self._out.upload(local / path, path, partial(self._heartbeat.tick, "finishing"))

    def _facts(self) -> dict[str, Any]:
        progress, settings = self._progress, self._settings
        return {
            **self._engine.facts,
            "steps": progress.step,
            f"{self._task.unit}_seen": progress.step * self._units_per_step,
            "num_windows": self._task.num_samples,
            "epochs": progress.step * settings.global_batch / self._task.num_samples,
            "global_batch": settings.global_batch,
            "seed": settings.seed,
            **({"mixture": [s.model_dump() for s in settings.mixture]} if settings.mixture else {}),
            "skips": sorted(self._checkpointer.skips),
            "sample_hash": progress.sample_hash,
            "history": [span.model_dump() for span in progress.history],
        }
