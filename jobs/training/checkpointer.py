"""How far a training is, and how its ranks save that and take it up again together.

Every method of the checkpointer is collective: all ranks call it, at the same step.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from jobs.disk import disk_sentence, writing
from jobs.training.engine import Engine, build_engine, to_universal
from jobs.training.group import RankGroup
from jobs.training.rank import RankConfig
from jobs.training.task import Task
from jobs.training.uploader import KEPT, CheckpointUploader, Snapshot, files_below
from orchestrator.errors import (
    Cause,
    CorruptError,
    LeaseHeldError,
    RequestError,
    RunFailedError,
    cause_of,
)
from orchestrator.ledger import checkpoints
from orchestrator.ledger.checkpoints import AttemptSpan, Manifest, Segment
from orchestrator.ledger.storage import Storage, sha256_of
from orchestrator.plan.token_order import HASH_START

CONVERTED = "CONVERTED.json"
"""Written last into a converted checkpoint: what was converted, and the digest of every file."""

SAVED = ("step", "cursor", "sample_hash", "metrics", "validation", "history")
"""What a checkpoint's manifest takes from the progress and gives back."""
SCRATCH = "cluster: scratch"
"""What names the node's disk, in messages."""
BuildEngine = Callable[..., Engine]
"""Stands in for `build_engine`."""


@dataclass
class Progress:
    """How far the training is; the same on every rank but for the lines, which rank 0 keeps."""

    step: int = 0
    cursor: int = 0
    sample_hash: str = HASH_START
    metrics: tuple[Segment, ...] = ()
    validation: tuple[Segment, ...] = ()
    history: tuple[AttemptSpan, ...] = ()
    metric_lines: list[dict[str, Any]] = field(default_factory=list)
    """Steps since the last checkpoint."""
    validation_lines: list[dict[str, Any]] = field(default_factory=list)


class Checkpointer:
    """One rank's part in saving and resuming."""

    def __init__(
        self,
        config: RankConfig,
        group: RankGroup,
        tick: Callable[[], None] = lambda: None,
        *,
        build: BuildEngine = build_engine,
    ) -> None:
        self._build = build
        self._config, self._group, self._rank_info = config, group, group.info
        self._out = Storage(config.out_url)
        self._scratch = Path(config.scratch)
        self._staging, self._kept = self._scratch / f"a{config.lease_n:04d}", self._scratch / KEPT
        self.uploader = CheckpointUploader(config, group.info, tick)
        self.resumed_from = ""
        """Name of the checkpoint that was loaded; empty for a new training."""
        self.waited_s = 0.0
        """How long the last save waited for the publication before it."""
        self.refused: list[str] = []
        """What was wrong with newer ones."""
        self.skips: frozenset[int] = frozenset()
        """Positions of the training order that are passed over."""

    def resume(self, task: Task) -> tuple[Engine, Progress]:
        """The task's model and the progress of the newest whole checkpoint, or of step 0."""
        self._sweep()
        found = self._find()
        universal = bool(found and self._needs_conversion(found))
        engine = self._build(task, self._config, self._rank_info, universal=universal)
        progress = self._restore(engine, found) if found else Progress()
        if progress.step < self._config.settings.steps:
            progress.history = (*progress.history, self._span(progress.step + 1))
        return engine, progress

    def save(self, engine: Engine, progress: Progress) -> float:
        """Put the state after this step on the node's disk and let the uploader go on from there.

        Returns how long training stood still, in seconds. Raises what the publication before this
        one ran into.
        """
        started = time.monotonic()
        name = checkpoints.name_of(progress.step, self._config.lease_n)
        passed = self.uploader.passed(progress.step)
        passed("save.begin")
        own = self._staging / f"rank-{self._rank_info.rank:05d}"
        rng_name = f"rng-{self._rank_info.rank:05d}.safetensors"
        with writing(own, SCRATCH):
            (own / name).mkdir(parents=True, exist_ok=True)
            engine.save(own, name)
            passed("save.written")
            save_file(rng_state(), own / name / rng_name)
        passed("save.staged")
        staged = time.monotonic()
        self.drain()
        self.waited_s = time.monotonic() - staged
        snapshot = Snapshot(name=name, step=progress.step, folder=own / name, rng_name=rng_name)
        self.uploader.start(self._led(snapshot, progress) if self._group.leads else snapshot)
        return time.monotonic() - started

    def drain(self) -> None:
        """Wait until the snapshot on its way is a checkpoint.

        When a rank cannot publish its part, or rank 0 cannot commit them, every rank learns of it
        first. Raises RunFailedError, LeaseHeldError when a later attempt has taken over.
        """
        self.uploader.wait_uploaded()  # rank 0 would wait in vain for the part of one that failed
        self._raise_failures()
        self.uploader.wait_committed()
        self._raise_failures()

    def _raise_failures(self) -> None:
        error = self.uploader.error
        # Whatever the system says here, it says of the store: resets and time-outs too.
        cause = Cause.STORAGE if isinstance(error, OSError) else error and cause_of(error)
        kind = f"{type(error).__name__}: "
        problem = error and (cause, kind + disk_sentence(error).removeprefix(kind))
        problems = [(r, *p) for r, p in enumerate(self._group.gather(problem)) if p]
        if not problems:
            return
        rank, cause, reason = problems[0]
        if cause is Cause.LEASE_HELD:
            raise LeaseHeldError(reason) from error
        place = "the store" if cause is Cause.STORAGE else "its log"
        raise RunFailedError(
            f"{self._config.section}: rank {rank} could not publish its checkpoint ({reason}); "
            f"look at {place}, training goes on from the checkpoint before",
            cause=cause,
        ) from error

    def close(self) -> None:
        """Publish what is left, and leave nothing on the node's disk."""
        self.drain()
        self._group.barrier()
        if self._rank_info.local_rank == 0:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what earlier attempts had staged on this node and can publish no more."""
        if self._rank_info.local_rank == 0:
            for left in self._scratch.glob("a[0-9]*"):
                if left != self._staging:
                    shutil.rmtree(left, ignore_errors=True)

    def _find(self) -> Manifest | None:
        """The newest checkpoint that all ranks find whole."""
        found: list[Manifest] = []
        noted: frozenset[int] = frozenset()
        if self._group.leads:
            found = checkpoints.resumable(checkpoints.committed(self._out), self._config.leases)
            noted = checkpoints.skipped(self._out)
        found, noted = self._group.broadcast((found, noted))
        self.skips = noted
        for manifest in found:
            problems = [p for p in self._group.gather(self._verify(manifest)) if p]
            if not problems:
                self.resumed_from = manifest.name
                # What is behind the cursor was used or skipped, whatever was noted since.
                ahead = {p for p in noted if p >= manifest.cursor}
                self.skips = frozenset(manifest.skips) | ahead
                return manifest
            self.refused.append(problems[0])
        if self.refused:
            raise RunFailedError(
                f"{self._config.section}: none of {len(self.refused)} checkpoints verifies, the "
                f"newest: {self.refused[0]}; look at the store and this node, or remove "
                f"{self._out.at(checkpoints.FOLDER).url} to begin anew",
                cause=Cause.STORAGE,
            )
        return None

    def _verify(self, manifest: Manifest) -> str:
        """This rank's part of a node's verification; nothing is unpickled before it is done."""
        names = sorted(manifest.files)[
            self._rank_info.local_rank :: self._rank_info.local_world_size
        ]
        if self._group.leads:
            try:
                checkpoints.join_segments(self._out, (*manifest.metrics, *manifest.validation))
            except (FileNotFoundError, CorruptError) as error:
                return str(error)
        return checkpoints.fetch_verified(self._out, manifest, names, self._kept)

    def _needs_conversion(self, manifest: Manifest) -> bool:
        """Whether ZeRO has cut the state for another number of ranks. Raises RequestError."""
        asked = self._config.execution.zero_stage
        if manifest.zero_stage != asked:
            raise RequestError(
                f"{self._config.section}.execution.zero_stage: {manifest.name} was written with "
                f"stage {manifest.zero_stage}, not {asked}; give {manifest.zero_stage}"
            )
        return manifest.zero_stage > 0 and manifest.world_size != self._rank_info.world_size

    def _restore(self, engine: Engine, manifest: Manifest) -> Progress:
        folder, tag = (self._out.local_root or self._kept) / checkpoints.FOLDER, manifest.name
        own_rng = folder / tag / manifest.rng.get(str(self._rank_info.rank), "none")
        if self._needs_conversion(manifest):
            folder = self._convert(folder / tag, manifest)
        engine.load(folder, tag)
        if own_rng.is_file():
            restore_rng(load_file(own_rng))
        return Progress(**{name: getattr(manifest, name) for name in SAVED})

    def _convert(self, folder: Path, manifest: Manifest) -> Path:
        """A folder with the checkpoint in a form that any number of ranks can load.

        Kept on the node's disk, so that an attempt that dies after it need not convert again; it is
        used only when every byte is still what the conversion wrote.
        """
        universal = self._scratch / "universal"
        target = universal / manifest.name
        if self._rank_info.local_rank == 0 and not is_converted(target, manifest):
            shutil.rmtree(target, ignore_errors=True)
            to_universal(folder, target)
            digests = {p: sha256_of(target / p) for p in files_below(target)}
            files = manifest.model_dump(mode="json")["files"]
            Storage(str(target)).create_json(CONVERTED, {"of": files, "files": digests})
        self._group.barrier()
        return universal

    def _span(self, first_step: int) -> AttemptSpan:
        config = self._config
        return AttemptSpan(
            lease_n=config.lease_n,
            first_step=first_step,
            world_size=self._rank_info.world_size,
            zero_stage=config.execution.zero_stage,
            micro_batch=config.execution.micro_batch,
            device=torch.cuda.get_device_name() if config.device == "cuda" else "cpu",
        )

    def _led(self, snapshot: Snapshot, progress: Progress) -> Snapshot:
        """Rank 0's snapshot: with the metric lines, and the manifest but for its files."""
        segments = self._close_segments(progress)
        draft = Manifest(
            **{name: getattr(progress, name) for name in SAVED},
            lease_n=self._config.lease_n,
            world_size=self._rank_info.world_size,
            zero_stage=self._config.execution.zero_stage,
            skips=tuple(sorted(self.skips)),
            files={},
            tracker=self._config.tracker,
        )
        return replace(snapshot, draft=draft, segments=segments)

    def _close_segments(self, progress: Progress) -> list[tuple[Segment, bytes]]:
        """The lines since the last checkpoint, as files to be written; the chain grows by them."""
        name, lease_n = partial(checkpoints.segment_path, progress.step), self._config.lease_n
        closed = [checkpoints.segment(name(lease_n), progress.metric_lines)]
        progress.metrics = (*progress.metrics, closed[0][0])
        if progress.validation_lines:
            path = name(lease_n, validation=True)
            closed.append(checkpoints.segment(path, progress.validation_lines))
            progress.validation = (*progress.validation, closed[1][0])
        progress.metric_lines, progress.validation_lines = [], []
        return closed


def is_converted(target: Path, manifest: Manifest) -> bool:
    """Whether a folder holds this checkpoint's conversion, byte for byte as it was written."""
    marker = target / CONVERTED
    if not marker.is_file():
        return False
    converted = json.loads(marker.read_text())
    if converted["of"] != manifest.model_dump(mode="json")["files"]:
        return False
    present = [p for p in files_below(target) if p != CONVERTED]
    return present == sorted(converted["files"]) and all(
        sha256_of(target / path) == digest for path, digest in converted["files"].items()
    )


def rng_state() -> dict[str, torch.Tensor]:
    """States of torch's random generators, the only ones that may be used inside a step."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_rng(state: dict[str, torch.Tensor]) -> None:
    """Put the generators where ``rng_state`` found them."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
