"""A training that begins with the steps of one that differs in nothing but its length.

The newest checkpoint below the new last step that verifies is copied into the new artifact, under
the lease of the attempt that does so; from there on it is a checkpoint like any other, and what
becomes of the other training does not matter. It counts once its manifest is written: who dies
before leaves files that nobody loads.

Before: what both keys are made of (``inputs.json``). After: the bytes of a straight training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import CorruptError
from orchestrator.ledger import checkpoints
from orchestrator.ledger import lease as leases
from orchestrator.ledger.artifact import INPUTS, Artifact
from orchestrator.ledger.checkpoints import Manifest, Segment
from orchestrator.ledger.records import find_record
from orchestrator.ledger.store import Store
from orchestrator.plan.extension import obstacle, relatives
from orchestrator.plan.keys import KEY_DIGITS, key_of

Lines = Sequence[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Length:
    """What the new training needs to know of itself."""

    steps: int
    """Its last step."""
    validate_every_steps: int
    """Steps between validations; a training validates after its last step besides."""
    zero_stage: int
    """DeepSpeed ZeRO stage, which checkpoints are bound to."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A checkpoint of another training."""

    artifact: Artifact
    manifest: Manifest

    @property
    def origin(self) -> str:
        """``train-0123456789ab``."""
        return f"{self.artifact.stage}-{self.artifact.key[:KEY_DIGITS]}"

    @property
    def about(self) -> dict[str, Any]:
        """What records say of it."""
        manifest = self.manifest
        return {"extends": self.origin, "checkpoint": manifest.name, "step": manifest.step}


def extend(
    own: Artifact,
    length: Length,
    *,
    lease_n: int,
    scratch: Path,
    refused: Callable[[Candidate, str], None] = lambda _candidate, _why: None,
) -> Candidate | None:
    """Take the best checkpoint over into an artifact that has none; None where nothing fits.

    ``refused`` hears of those that do not verify. The store is asked anew after each of them: the
    other training may be at work, and retention has removed what was listed. Raises OSError where
    the store does not do as asked, LeaseHeldError when a later attempt has taken over.
    """
    if checkpoints.committed(own.storage):
        return None
    seen: set[tuple[str, str]] = set()
    while fresh := [c for c in candidates(own, length) if (c.origin, c.manifest.name) not in seen]:
        best = fresh[0]
        seen.add((best.origin, best.manifest.name))
        try:
            _adopt(own, best, length, lease_n, scratch)
        except (CorruptError, FileNotFoundError) as error:
            _withdraw(own, best, lease_n)
            refused(best, str(error))
        else:
            return best
    return None


def candidates(own: Artifact, length: Length) -> list[Candidate]:
    """Checkpoints that a training could begin with, the newest step first."""
    inputs = find_record(own.storage, INPUTS, "remove it")
    if inputs is None or obstacle(inputs):
        return []
    store = Store.around(own)
    others = relatives(inputs, store.inputs_of(own.stage))
    found = [c for other in others for c in _of(store.artifact(own.stage, key_of(other)), length)]
    return sorted(found, key=lambda c: (c.manifest.step, c.origin), reverse=True)


def _of(artifact: Artifact, length: Length) -> Iterator[Candidate]:
    with suppress(CorruptError):
        manifests = checkpoints.committed(artifact.storage)
        for manifest in checkpoints.resumable(manifests, [m.lease_n for m in manifests]):
            if manifest.step < length.steps and manifest.zero_stage == length.zero_stage:
                yield Candidate(artifact=artifact, manifest=manifest)


def _adopt(own: Artifact, chosen: Candidate, length: Length, lease_n: int, scratch: Path) -> None:
    """Copy a checkpoint and commit it. Raises CorruptError, FileNotFoundError, LeaseHeldError."""
    theirs, manifest = chosen.artifact.storage, chosen.manifest
    metrics, validation = _past(chosen, length)
    target = f"{checkpoints.FOLDER}/{checkpoints.name_of(manifest.step, lease_n)}"
    for name in sorted(manifest.files):
        if problem := checkpoints.fetch_verified(theirs, manifest, [name], scratch):
            raise CorruptError(f"{theirs.url}/{problem}")
        local = theirs.local_root or scratch
        copied = local / checkpoints.FOLDER / manifest.name / name
        own.storage.upload(copied, f"{target}/{name}")
        if theirs.local_root is None:
            copied.unlink()
    named = checkpoints.segment_path
    own_metrics = _write(own, named(manifest.step, lease_n), metrics)
    own_validation = _write(own, named(manifest.step, lease_n, validation=True), validation)
    history = (
        span if span.artifact else span.model_copy(update={"artifact": chosen.origin})
        for span in manifest.history
    )
    ours = {"lease_n": lease_n, "metrics": own_metrics, "validation": own_validation}
    committed = manifest.model_copy(update={**ours, "history": tuple(history)})
    leases.require_newest(own.storage, lease_n)
    checkpoints.commit(own.storage, committed)


def _past(chosen: Candidate, length: Length) -> tuple[Lines, Lines]:
    """Metric and validation lines up to a checkpoint, as a straight training would have them.

    Raises CorruptError when they have changed, or when the last of them would not be a checkpoint
    there: the other training had to end with steps that a longer one may roll back.
    """
    storage, manifest = chosen.artifact.storage, chosen.manifest
    metrics = _lines(checkpoints.join_segments(storage, manifest.metrics))
    validation = _lines(checkpoints.join_segments(storage, manifest.validation))
    if metrics and metrics[-1].get("loss", 0.0) is None:
        raise CorruptError(f"{manifest.name}: its last step had no finite loss")
    due = [line for line in validation if line["step"] % length.validate_every_steps == 0]
    return metrics, due


def _lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def _write(own: Artifact, path: str, lines: Lines) -> tuple[Segment, ...]:
    """The lines as one segment; none for no lines."""
    if not lines:
        return ()
    segment, data = checkpoints.segment(path, lines)
    own.storage.create(path, data)
    return (segment,)


def _withdraw(own: Artifact, chosen: Candidate, lease_n: int) -> None:
    """Remove what was copied of a checkpoint that is not whole."""
    name = checkpoints.name_of(chosen.manifest.step, lease_n)
    for path in own.storage.list(f"{checkpoints.FOLDER}/{name}"):
        own.storage.delete(path)
