"""What an honest training leaves behind, without the training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jobs.training.uploader import upload_folder
from orchestrator.ledger import checkpoints
from orchestrator.ledger.checkpoints import Manifest
from orchestrator.ledger.storage import Storage
from orchestrator.plan.token_order import HASH_START, TokenOrder, chain_hash

FACTS = {"num_windows": 5, "seed": 0, "global_batch": 4, "skips": []}


def metric_lines(steps: Sequence[int]) -> bytes:
    """The metric lines of a training with these facts and step numbers."""
    lines, running = [], HASH_START
    order = TokenOrder(5, seed=0)
    for step, draw in zip(steps, order.batches(len(steps), 4), strict=True):
        running = chain_hash(running, draw.windows)
        lines.append(json.dumps({"step": step, "loss": 1.0, "sample_hash": running}))
    return "\n".join(lines).encode()


def nothing(_point: str) -> None:
    """Nobody is to be killed."""


def save(
    out: Storage, step: int, lease_n: int, after: Manifest | None = None, *, whole: bool = True
) -> Manifest:
    """A checkpoint as a rank makes it, with one file and its metrics segment."""
    name = checkpoints.name_of(step, lease_n)
    local = Path(f"{out.url}-staging") / name
    local.mkdir(parents=True)
    (local / "state.pt").write_text(name)
    entries = upload_folder(out, local, name, nothing)
    lines = [{"step": n} for n in range((after.step if after else 0) + 1, step + 1)]
    segment, data = checkpoints.segment(checkpoints.segment_path(step, lease_n), lines)
    out.create(segment.path, data)
    manifest = Manifest(
        step=step,
        lease_n=lease_n,
        world_size=1,
        zero_stage=0,
        cursor=step * 4,
        sample_hash="0" * 64,
        files=entries,
        metrics=(*(after.metrics if after else ()), segment),
    )
    if whole:
        checkpoints.commit(out, manifest)
    return manifest
