"""How far a training is, and how its ranks make that durable and take it up again together.

Every method of the keeper is collective: all ranks call it, at the same step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from jobs.lm import checkpoint as checkpoints
from jobs.lm.checkpoint import FileEntry, Manifest, Segment, Stint
from jobs.lm.engine import Engine, build_engine, to_universal
from jobs.lm.rank import Place, RankConfig
from jobs.lm.token_stream import HASH_START
from orchestrator.errors import CorruptError, RequestError
from orchestrator.ledger.storage import Storage


@dataclass
class Progress:
    """How far the training is; the same on every rank but for the lines, which rank 0 keeps."""

    step: int = 0
    sample_hash: str = HASH_START
    metrics: tuple[Segment, ...] = ()
    validation: tuple[Segment, ...] = ()
    history: tuple[Stint, ...] = ()
    metric_lines: list[dict[str, Any]] = field(default_factory=list)
    """Steps since the last checkpoint."""
    validation_lines: list[dict[str, Any]] = field(default_factory=list)


class Keeper:
    """One rank's part in saving and resuming."""

    def __init__(self, config: RankConfig, place: Place, group: Any) -> None:
        self._config, self._place, self._group = config, place, group
        self._out, self._staging = Storage(config.out_url), Path(config.folder) / "staging"
        self.resumed_from = ""
        """Name of the checkpoint that was loaded; empty for a new training."""
        self.refused: list[str] = []
        """What was wrong with newer ones."""

    def resume(self) -> tuple[Engine, Progress]:
        """The model and the progress of the newest whole checkpoint, or of step 0."""
        found = self._find()
        universal = bool(found and self._needs_conversion(found))
        engine = build_engine(self._config, self._place, universal=universal)
        progress = self._restore(engine, found) if found else Progress()
        if progress.step < self._config.train.steps:
            progress.history = (*progress.history, self._stint(progress.step + 1))
        return engine, progress

    def save(self, engine: Engine, progress: Progress) -> None:
        """Make the state after this step durable; it exists once the manifest is written."""
        name = checkpoints.name_of(progress.step, self._config.lease_n)
        own = self._staging / f"rank-{self._place.rank:05d}"
        (own / name).mkdir(parents=True, exist_ok=True)
        engine.deepspeed.save_checkpoint(str(own), tag=name, save_latest=False)
        rng_name = f"rng-{self._place.rank:05d}.safetensors"
        save_file(rng_state(), own / name / rng_name)
        entries = checkpoints.upload_folder(self._out, own / name, name)
        files = {path: entry.model_dump() for path, entry in entries.items()}
        parts = self._gather({"files": files, "rng": rng_name})
        if self._place.rank == 0:
            self._commit(progress, parts)
        dist.barrier(group=self._group)

    def _find(self) -> Manifest | None:
        """The newest checkpoint that all ranks find whole."""
        message: list[Any] = [None]
        if self._place.rank == 0:
            found = checkpoints.resumable(checkpoints.committed(self._out), self._config.leases)
            message = [[m.model_dump(mode="json") for m in found]]
        dist.broadcast_object_list(message, src=0, group=self._group)
        for raw in message[0]:
            manifest = Manifest.model_validate(raw)
            problems = [problem for problem in self._gather(self._verify(manifest)) if problem]
            if not problems:
                self.resumed_from = manifest.name
                return manifest
            self.refused.append(problems[0])
        return None

    def _verify(self, manifest: Manifest) -> str:
        """This rank's part of a node's verification; nothing is unpickled before it is done."""
        names = sorted(manifest.files)[self._place.local_rank :: self._place.local_world_size]
        return checkpoints.fetch_verified(self._out, manifest, names, self._staging)

    def _needs_conversion(self, manifest: Manifest) -> bool:
        """Whether ZeRO has cut the state for another number of ranks. Raises RequestError."""
        asked = self._config.execution.zero_stage
        if manifest.zero_stage != asked:
            raise RequestError(
                f"train.execution.zero_stage: {manifest.name} was written with stage "
                f"{manifest.zero_stage}, not {asked}; give {manifest.zero_stage}"
            )
        return manifest.zero_stage > 0 and manifest.world_size != self._place.world_size

    def _restore(self, engine: Engine, manifest: Manifest) -> Progress:
        folder, tag = checkpoints.local_folder(self._out, self._staging), manifest.name
        own_rng = folder / tag / manifest.rng.get(str(self._place.rank), "none")
        if self._needs_conversion(manifest):
            folder = self._convert(folder / tag)
        loaded, _ = engine.deepspeed.load_checkpoint(
            str(folder), tag=tag, load_lr_scheduler_states=False
        )
        if loaded is None:
            raise CorruptError(f"{folder / tag}: DeepSpeed found nothing to load; remove it")
        if own_rng.is_file():
            restore_rng(load_file(own_rng))
        return Progress(
            step=manifest.step,
            sample_hash=manifest.sample_hash,
            metrics=manifest.metrics,
            validation=manifest.validation,
            history=manifest.history,
        )

    def _convert(self, folder: Path) -> Path:
        """A folder with the checkpoint in a form that any number of ranks can load."""
        universal = self._staging / "universal"
        if self._place.local_rank == 0:
            to_universal(folder, universal / folder.name)
        dist.barrier(group=self._group)
        return universal

    def _stint(self, first_step: int) -> Stint:
        config = self._config
        return Stint(
            lease_n=config.lease_n,
            first_step=first_step,
            world_size=self._place.world_size,
            zero_stage=config.execution.zero_stage,
            micro_batch=config.execution.micro_batch,
            device=torch.cuda.get_device_name() if config.device == "cuda" else "cpu",
        )

    def _commit(self, progress: Progress, parts: list[dict[str, Any]]) -> None:
        self._close_segments(progress)
        config = self._config
        entries = {path: entry for part in parts for path, entry in part["files"].items()}
        manifest = Manifest(
            step=progress.step,
            lease_n=config.lease_n,
            world_size=self._place.world_size,
            zero_stage=config.execution.zero_stage,
            cursor=progress.step * config.train.global_batch,
            sample_hash=progress.sample_hash,
            files={path: FileEntry.model_validate(entry) for path, entry in entries.items()},
            metrics=progress.metrics,
            validation=progress.validation,
            rng={str(rank): part["rng"] for rank, part in enumerate(parts)},
            history=progress.history,
        )
        checkpoints.commit(self._out, manifest)
        checkpoints.retire(self._out, config.train.checkpoint, config.leases)

    def _close_segments(self, progress: Progress) -> None:
        lease_n = self._config.lease_n
        path = checkpoints.segment_path(progress.step, lease_n)
        segment = checkpoints.write_segment(self._out, path, progress.metric_lines)
        progress.metrics = (*progress.metrics, segment)
        if progress.validation_lines:
            path = checkpoints.segment_path(progress.step, lease_n, validation=True)
            segment = checkpoints.write_segment(self._out, path, progress.validation_lines)
            progress.validation = (*progress.validation, segment)
        progress.metric_lines, progress.validation_lines = [], []

    def _gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self._place.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values


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
